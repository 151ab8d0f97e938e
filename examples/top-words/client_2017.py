#!/usr/bin/env python3
"""Top words with the Azure SDK for Python as it was in 2017 (azure-batch 2.0.1, azure-storage 0.33.0).

The steps are those of the Batch tutorial of that time: upload the script and the texts to Blob storage, make a pool whose
start task puts the script in the directory the node's tasks share, add a job with one task per text, wait, read the
tasks' stdout, download what the tasks uploaded with their container SAS, and delete everything.

Run it with the variables that `kiln env` prints.
"""

import datetime
import logging
import os
import pathlib
import sys
import time
import uuid

import azure.batch.batch_auth as batchauth
import azure.batch.batch_service_client as batch
import azure.batch.models as batchmodels
import azure.storage.blob as azureblob

import check

HERE = pathlib.Path(__file__).resolve().parent
TOP = int(os.environ.get("TOP_WORDS", "10"))
NODES = 2
POLL_SECONDS = 0.2
TIMEOUT = datetime.timedelta(minutes=5)


def wrap_commands_in_shell(commands):
    return "/bin/bash -c 'set -e; set -o pipefail; {}; wait'".format("; ".join(commands))


def in_two_hours():
    return datetime.datetime.utcnow() + datetime.timedelta(hours=2)


def upload_file_to_container(blob_client, container, path):
    """Uploads a file; returns a ResourceFile with a SAS that lets a node read it."""
    blob_client.create_blob_from_path(container, path.name, str(path))
    sas = blob_client.generate_blob_shared_access_signature(
        container, path.name, permission=azureblob.BlobPermissions.READ, expiry=in_two_hours())
    url = blob_client.make_blob_url(container, path.name, sas_token=sas)
    return batchmodels.ResourceFile(file_path=path.name, blob_source=url)


def container_url(blob_client, container, permission):
    sas = blob_client.generate_container_shared_access_signature(container, permission=permission, expiry=in_two_hours())
    return "{}://{}/{}?{}".format(blob_client.protocol, blob_client.primary_endpoint, container, sas)


def create_pool(batch_client, pool_id, resource_files):
    commands = ["cp -p {} $AZ_BATCH_NODE_SHARED_DIR".format(file.file_path) for file in resource_files]
    batch_client.pool.add(batchmodels.PoolAddParameter(
        id=pool_id,
        virtual_machine_configuration=batchmodels.VirtualMachineConfiguration(
            image_reference=batchmodels.ImageReference("Canonical", "UbuntuServer", "16.04.0-LTS", "latest"),
            node_agent_sku_id="batch.node.ubuntu 16.04"),
        vm_size="STANDARD_A1",
        target_dedicated=NODES,
        max_tasks_per_node=2,
        start_task=batchmodels.StartTask(
            command_line=wrap_commands_in_shell(commands), resource_files=resource_files, wait_for_success=True),
    ))


def add_tasks(batch_client, job_id, input_files, output_url):
    tasks = []
    for number, input_file in enumerate(input_files):
        command = 'python3 "$AZ_BATCH_NODE_SHARED_DIR/top_words.py" {} --top {} --upload "{}"'.format(
            input_file.file_path, TOP, output_url)
        tasks.append(batchmodels.TaskAddParameter(
            "topwords{}".format(number), wrap_commands_in_shell([command]), resource_files=[input_file]))
    results = batch_client.task.add_collection(job_id, tasks)
    refused = [result for result in results.value if result.status != batchmodels.TaskAddStatus.success]
    if refused:
        raise RuntimeError("task {} was refused: {}".format(refused[0].task_id, refused[0].error.code))


def wait_for(what, condition):
    deadline = datetime.datetime.now() + TIMEOUT
    while not condition():
        if datetime.datetime.now() > deadline:
            raise RuntimeError("{} did not happen within {}".format(what, TIMEOUT))
        time.sleep(POLL_SECONDS)


def is_gone(get):
    try:
        get()
        return False
    except batchmodels.BatchErrorException as error:
        if error.error.code in ("PoolNotFound", "JobNotFound"):
            return True
        raise


def tasks_completed(batch_client, job_id):
    return all(task.state == batchmodels.TaskState.completed for task in batch_client.task.list(job_id))


def read_task_file(batch_client, job_id, task_id, name):
    return b"".join(batch_client.file.get_from_task(job_id, task_id, name)).decode()


def run(blob_client, batch_client, containers, pool_id, job_id, clock):
    app, inputs, output = containers
    for container in containers:
        blob_client.create_container(container, fail_on_exist=True)
    application_files = [upload_file_to_container(blob_client, app, HERE / "top_words.py")]
    input_files = [upload_file_to_container(blob_client, inputs, path) for path in sorted((HERE / "data").glob("*.txt"))]
    output_url = container_url(blob_client, output, azureblob.ContainerPermissions.WRITE)
    clock("upload")

    create_pool(batch_client, pool_id, application_files)
    batch_client.job.add(batchmodels.JobAddParameter(job_id, batchmodels.PoolInformation(pool_id=pool_id)))
    add_tasks(batch_client, job_id, input_files, output_url)
    clock("pool, job, tasks added")

    wait_for("the completion of all tasks", lambda: tasks_completed(batch_client, job_id))
    clock("tasks completed")

    printed = {}
    for task in batch_client.task.list(job_id):
        stem = pathlib.Path(task.resource_files[0].file_path).stem
        printed[stem] = read_task_file(batch_client, job_id, task.id, "stdout.txt")
        if task.execution_info.exit_code != 0:
            stderr = read_task_file(batch_client, job_id, task.id, "stderr.txt")
            raise RuntimeError("task {} ended with {}:\n{}".format(task.id, task.execution_info.exit_code, stderr))
        print("{} on {}:\n{}".format(stem, task.node_info.node_id, printed[stem]), end="")
    uploaded = {pathlib.Path(blob.name).stem: blob_client.get_blob_to_text(output, blob.name).content
                for blob in blob_client.list_blobs(output)}
    clock("results fetched")
    return printed, uploaded


def clean_up(blob_client, batch_client, containers, pool_id, job_id):
    for delete, get, name in ((batch_client.job.delete, batch_client.job.get, job_id),
                              (batch_client.pool.delete, batch_client.pool.get, pool_id)):
        if not is_gone(lambda: get(name)):
            delete(name)
            wait_for("the deletion of {}".format(name), lambda: is_gone(lambda: get(name)))
    for container in containers:
        blob_client.delete_container(container, fail_not_exist=False)


class Clock:
    def __init__(self):
        self.start = self.last = time.monotonic()

    def __call__(self, what):
        now = time.monotonic()
        print("{:6.2f} s  {}".format(now - self.last, what))
        self.last = now

    def total(self):
        return self.last - self.start


def main():
    # The msrest of today warns at every call about credentials classes as old as this one.
    logging.getLogger("msrest").setLevel(logging.ERROR)
    # The old storage SDK takes the data plane's address as a "custom domain", path and all.
    storage = dict(part.split("=", 1) for part in os.environ["AZURE_STORAGE_CONNECTION_STRING"].split(";") if part)
    blob_client = azureblob.BlockBlobService(
        account_name=storage["AccountName"], account_key=storage["AccountKey"], custom_domain=storage["BlobEndpoint"])
    credentials = batchauth.SharedKeyCredentials(
        os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"])
    batch_client = batch.BatchServiceClient(credentials, base_url=os.environ["AZURE_BATCH_ENDPOINT"])

    run_id = uuid.uuid4().hex[:8]
    containers = ["top-words-{}-{}".format(run_id, use) for use in ("app", "input", "output")]
    pool_id, job_id = "top-words-pool-" + run_id, "top-words-job-" + run_id

    clock = Clock()
    try:
        printed, uploaded = run(blob_client, batch_client, containers, pool_id, job_id, clock)
        total = clock.total()
    finally:
        clean_up(blob_client, batch_client, containers, pool_id, job_id)
        clock("everything deleted")
    problems = check.compare(printed, TOP) + check.compare(uploaded, TOP)
    for problem in problems:
        print(problem, file=sys.stderr)
    print("total: {:.2f} s without the deletion; {} results, {} problems".format(total, len(uploaded), len(problems)))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

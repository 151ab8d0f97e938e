#!/usr/bin/env python3
"""Top words with the Azure SDK for Python of today (azure-batch 15.1, azure-storage-blob 12).

Texts come to the tasks as single blobs with a SAS, the script as a container of the account's own storage; the service
uploads the results (output files); the job ends by itself when its tasks have; the 15.1 pollers wait for the deletions.

Run it with the variables that `kiln env` prints.
"""

import datetime
import os
import pathlib
import sys
import time
import uuid

import azure.batch.models as batchmodels
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import (
    BlobSasPermissions,
    BlobServiceClient,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)

import check

HERE = pathlib.Path(__file__).resolve().parent
TOP = int(os.environ.get("TOP_WORDS", "10"))
NODES = 2
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 300


def in_two_hours():
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)


def upload_with_sas(storage, container, path):
    blob = storage.get_blob_client(container, path.name)
    with path.open("rb") as content:
        blob.upload_blob(content)
    sas = generate_blob_sas(
        storage.account_name, container, path.name, account_key=storage.credential.account_key,
        permission=BlobSasPermissions(read=True), expiry=in_two_hours())
    return batchmodels.ResourceFile(http_url=f"{blob.url}?{sas}", file_path=path.name)


def container_url(storage, container, permission):
    sas = generate_container_sas(
        storage.account_name, container, account_key=storage.credential.account_key,
        permission=permission, expiry=in_two_hours())
    return f"{storage.get_container_client(container).url}?{sas}"


def pool_options(pool_id):
    return batchmodels.BatchPoolCreateOptions(
        id=pool_id,
        vm_size="standard_d2s_v3",
        virtual_machine_configuration=batchmodels.VirtualMachineConfiguration(
            image_reference=batchmodels.BatchVmImageReference(
                publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2204", version="latest"),
            node_agent_sku_id="batch.node.ubuntu 22.04"),
        target_dedicated_nodes=NODES,
        task_slots_per_node=2,
        task_scheduling_policy=batchmodels.BatchTaskSchedulingPolicy(
            node_fill_type=batchmodels.BatchNodeFillType.SPREAD))


def task_options(path, text, script, results_url):
    return batchmodels.BatchTaskCreateOptions(
        id=path.stem,
        command_line=f"python3 app/top_words.py --top {TOP} {path.name}",
        resource_files=[text, script],
        output_files=[batchmodels.OutputFile(
            file_pattern="../stdout.txt",
            destination=batchmodels.OutputFileDestination(
                container=batchmodels.OutputFileBlobContainerDestination(
                    container_url=results_url, path=f"{path.stem}.txt")),
            upload_options=batchmodels.OutputFileUploadConfiguration(
                upload_condition=batchmodels.OutputFileUploadCondition.TASK_SUCCESS))],
        constraints=batchmodels.BatchTaskConstraints(max_wall_clock_time=datetime.timedelta(minutes=2)))


def wait_for_job(batch, job_id):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while batch.get_job(job_id, select=["id", "state"]).state != batchmodels.BatchJobState.COMPLETED:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the job did not end within {TIMEOUT_SECONDS} s")
        time.sleep(POLL_SECONDS)


def run(storage, batch, containers, pool_id, job_id, clock):
    app, inputs, output = containers
    for container in containers:
        storage.create_container(container)
    with (HERE / "top_words.py").open("rb") as content:
        storage.get_blob_client(app, "top_words.py").upload_blob(content)
    script = batchmodels.ResourceFile(
        storage_container_url=container_url(storage, app, ContainerSasPermissions(read=True, list=True)), file_path="app")
    paths = sorted((HERE / "data").glob("*.txt"))
    texts = [upload_with_sas(storage, inputs, path) for path in paths]
    results_url = container_url(storage, output, ContainerSasPermissions(write=True))
    clock("upload")

    batch.create_pool(pool_options(pool_id))
    batch.create_job(batchmodels.BatchJobCreateOptions(id=job_id, pool_info=batchmodels.BatchPoolInfo(pool_id=pool_id)))
    batch.create_tasks(job_id, [task_options(path, text, script, results_url) for path, text in zip(paths, texts)])
    batch.update_job(job_id, batchmodels.BatchJobUpdateOptions(
        all_tasks_complete_mode=batchmodels.BatchAllTasksCompleteMode.TERMINATE_JOB))
    clock("pool, job, tasks added")

    wait_for_job(batch, job_id)
    clock("tasks completed")

    printed = {}
    for task in batch.list_tasks(job_id):
        printed[task.id] = b"".join(batch.download_task_file(job_id, task.id, "stdout.txt")).decode()
        if task.execution_info.result != batchmodels.BatchTaskExecutionResult.SUCCESS:
            stderr = b"".join(batch.download_task_file(job_id, task.id, "stderr.txt")).decode()
            raise RuntimeError(f"task {task.id} failed: {task.execution_info.failure_info}\n{stderr}")
        print(f"{task.id} on {task.node_info.node_id}:\n{printed[task.id]}", end="")
    container = storage.get_container_client(output)
    uploaded = {pathlib.Path(name).stem: container.download_blob(name, encoding="utf-8").readall()
                for name in container.list_blob_names()}
    clock("results fetched")
    return printed, uploaded


def clean_up(storage, batch, containers, pool_id, job_id):
    for begin_delete, name in ((batch.begin_delete_job, job_id), (batch.begin_delete_pool, pool_id)):
        try:
            begin_delete(name, polling_interval=1).wait()
        except ResourceNotFoundError:
            pass
    for container in containers:
        try:
            storage.delete_container(container)
        except ResourceNotFoundError:
            pass


class Clock:
    def __init__(self):
        self.start = self.last = time.monotonic()

    def __call__(self, what):
        now = time.monotonic()
        print(f"{now - self.last:6.2f} s  {what}")
        self.last = now

    def total(self):
        return self.last - self.start


def main():
    storage = BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"])
    batch = BatchClient(
        endpoint=os.environ["AZURE_BATCH_ENDPOINT"],
        credential=AzureNamedKeyCredential(os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"]))
    run_id = uuid.uuid4().hex[:8]
    containers = [f"top-words-{run_id}-{use}" for use in ("app", "input", "output")]
    pool_id, job_id = f"top-words-pool-{run_id}", f"top-words-job-{run_id}"

    clock = Clock()
    try:
        printed, uploaded = run(storage, batch, containers, pool_id, job_id, clock)
        total = clock.total()
    finally:
        clean_up(storage, batch, containers, pool_id, job_id)
        clock("everything deleted")
    problems = check.compare(printed, TOP) + check.compare(uploaded, TOP)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"total: {total:.2f} s without the deletion; {len(uploaded)} results, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

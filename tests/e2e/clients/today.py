"""What the programs with the SDK of today share: clients, waiting, pools."""

import datetime
import os
import time

import azure.batch.models as batchmodels
from azure.batch import BatchClient
from azure.core.credentials import AccessToken, AzureKeyCredential, AzureNamedKeyCredential
from azure.core.pipeline.policies import AzureKeyCredentialPolicy, SansIOHTTPPolicy

POLL_SECONDS = 0.1
TIMEOUT_SECONDS = 200


def account_client():
    """With the account's key, as users have it."""
    return BatchClient(
        endpoint=os.environ["AZURE_BATCH_ENDPOINT"],
        credential=AzureNamedKeyCredential(os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"]))


def task_client():
    """With the token of a task, as its process has it.

    The SDK sends a TokenCredential over https only. A key credential in the Authorization header goes over http, too.
    """
    token = AzureKeyCredential(os.environ["AZ_BATCH_AUTHENTICATION_TOKEN"])
    return BatchClient(
        endpoint=os.environ["AZ_BATCH_ACCOUNT_URL"],
        credential=token,
        authentication_policy=AzureKeyCredentialPolicy(token, "Authorization", prefix="Bearer"))


class StaticToken:
    """The token of a task as a TokenCredential, for programs that have to take one."""

    def get_token(self, *scopes, **kwargs):
        in_an_hour = int(time.time()) + 3600
        return AccessToken(os.environ["AZ_BATCH_AUTHENTICATION_TOKEN"], in_an_hour)


class AllowHttp(SansIOHTTPPolicy):
    """Lets the SDK send a TokenCredential to a server without TLS."""

    def on_request(self, request):
        request.context.options["enforce_https"] = False


def token_credential_client():
    return BatchClient(
        endpoint=os.environ["AZ_BATCH_ACCOUNT_URL"], credential=StaticToken(), per_call_policies=[AllowHttp()])


def until(what, condition):
    """The first value of `condition` that is true."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {TIMEOUT_SECONDS} s: {what}")
        time.sleep(POLL_SECONDS)
    return value


def job_of(batch, job_id, state="completed"):
    def look():
        job = batch.get_job(job_id)
        return job if job.state == state else None

    return until(f"job {job_id} is {state}", look)


def task_of(batch, job_id, task_id, state="completed"):
    def look():
        task = batch.get_task(job_id, task_id)
        return task if task.state == state else None

    return until(f"task {task_id} is {state}", look)


def stdout(batch, job_id, task_id):
    return b"".join(batch.download_task_file(job_id, task_id, "stdout.txt")).decode()


def virtual_machine():
    return batchmodels.VirtualMachineConfiguration(
        image_reference=batchmodels.BatchVmImageReference(
            publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2204", version="latest"),
        node_agent_sku_id="batch.node.ubuntu 22.04")


def make_pool(batch, pool_id, nodes=1, slots=1, talk=False):
    batch.create_pool(batchmodels.BatchPoolCreateOptions(
        id=pool_id, vm_size="local", virtual_machine_configuration=virtual_machine(), target_dedicated_nodes=nodes,
        task_slots_per_node=slots, enable_inter_node_communication=talk))


def task(task_id, command="true", **settings):
    return batchmodels.BatchTaskCreateOptions(id=task_id, command_line=command, **settings)


def in_pool(pool_id):
    return batchmodels.BatchPoolInfo(pool_id=pool_id)


def minutes(count):
    return datetime.timedelta(minutes=count)

#!/usr/bin/env python3
"""Application packages with the SDK of early 2017; the test has made "Tool" with the versions 1.0 (default) and 2.0."""

import os
import time

import azure.batch.batch_auth as batchauth
import azure.batch.batch_service_client as batch
import azure.batch.models as batchmodels


def until(what, condition):
    deadline = time.monotonic() + 200
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("not within 200 s: {}".format(what))
        time.sleep(0.1)


credentials = batchauth.SharedKeyCredentials(os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"])
client = batch.BatchServiceClient(credentials, base_url=os.environ["AZURE_BATCH_ENDPOINT"])
found = list(client.application.list())
assert [(one.id, one.display_name, one.versions) for one in found] == [("Tool", "For tests", ["1.0", "2.0"])], found
assert client.application.get("Tool").id == "Tool"


def make_pool(pool_id, application, version):
    client.pool.add(batchmodels.PoolAddParameter(
        pool_id, "small", target_dedicated=1,
        cloud_service_configuration=batchmodels.CloudServiceConfiguration("4"),
        application_package_references=[batchmodels.ApplicationPackageReference(application, version)]))


try:
    make_pool("p", "Tool", "3.0")
except batchmodels.BatchErrorException as error:
    assert error.error.code == "InvalidApplicationPackageReferences", error
else:
    raise AssertionError("not refused")
make_pool("p", "Tool", "1.0")
client.job.add(batchmodels.JobAddParameter("j", batchmodels.PoolInformation(pool_id="p")))
client.task.add("j", batchmodels.TaskAddParameter(
    "t", "/bin/sh -c '$AZ_BATCH_APP_PACKAGE_Tool_1_0/bin/say; $AZ_BATCH_APP_PACKAGE_tool_2_0/bin/say'",
    application_package_references=[batchmodels.ApplicationPackageReference("Tool", "2.0")]))
until("the task is over", lambda: client.task.get("j", "t").state == batchmodels.TaskState.completed)
output = b"".join(client.file.get_from_task("j", "t", "stdout.txt")).decode()
assert output == "one\ntwo\n", output
print("packages: as it should be")

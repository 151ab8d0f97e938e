#!/usr/bin/env python3
"""Application packages with the SDK of today; the test has made "Tool" with the versions 1.0 (default) and 2.0."""

import azure.batch.models as batchmodels
from azure.batch.models._models import BatchNodeRebootOptions
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from today import account_client, in_pool, stdout, task, task_of, until, virtual_machine


def reference(application, version=None):
    return batchmodels.BatchApplicationPackageReference(application_id=application, version=version)


def pool(pool_id, packages):
    return batchmodels.BatchPoolCreateOptions(
        id=pool_id, vm_size="local", virtual_machine_configuration=virtual_machine(), target_dedicated_nodes=1,
        application_package_references=packages)


def refused(call):
    try:
        call()
    except HttpResponseError as error:
        assert error.status_code == 409, error
        assert error.model.code == "InvalidApplicationPackageReferences", error
        return
    raise AssertionError("not refused")


batch = account_client()
found = list(batch.list_applications())
assert [(one.id, one.display_name, one.versions) for one in found] == [("Tool", "For tests", ["1.0", "2.0"])], found
assert batch.get_application("tool").versions == ["1.0", "2.0"]
for missing in ("nothing", "no.id"):
    try:
        batch.get_application(missing)
    except ResourceNotFoundError as error:
        assert error.model.code == "ApplicationNotFound", error
    else:
        raise AssertionError(missing)

for wrong in (reference("nothing"), reference("Tool", "3.0")):
    refused(lambda: batch.create_pool(pool("p", [wrong])))
batch.create_pool(pool("p", [reference("Tool")]))
known = batch.get_pool("p").application_package_references
assert [(one.application_id, one.version) for one in known] == [("Tool", None)], known

batch.create_job(batchmodels.BatchJobCreateOptions(id="j", pool_info=in_pool("p")))
say = "/bin/sh -c '$AZ_BATCH_APP_PACKAGE_Tool/bin/say; $AZ_BATCH_APP_PACKAGE_Tool_2_0/bin/say'"
batch.create_task("j", task("both", say, application_package_references=[reference("tool", "2.0")]))
batch.create_task("j", task("missing", "true", application_package_references=[reference("nothing", "1")]))
assert task_of(batch, "j", "both").execution_info.exit_code == 0
assert stdout(batch, "j", "both") == "one\ntwo\n", stdout(batch, "j", "both")
failure = task_of(batch, "j", "missing").execution_info.failure_info
assert (failure.code, failure.category) == ("ApplicationPackageError", "usererror"), failure
assert [(one.name, one.value) for one in failure.details] == [("ApplicationPackageReference", "nothing:1")], failure

# A job manager brings its own; so does a pool that is made for a job.
batch.create_job(batchmodels.BatchJobCreateOptions(
    id="managed", pool_info=in_pool("p"), job_manager_task=batchmodels.BatchJobManagerTask(
        id="manager", command_line="/bin/sh -c $AZ_BATCH_APP_PACKAGE_Tool_2_0/bin/say",
        application_package_references=[reference("Tool", "2.0")])))
task_of(batch, "managed", "manager")
assert stdout(batch, "managed", "manager") == "two\n"


def with_own_pool(job_id, packages):
    made = batchmodels.BatchPoolSpecification(
        vm_size="local", virtual_machine_configuration=virtual_machine(), target_dedicated_nodes=1,
        application_package_references=packages)
    auto = batchmodels.BatchAutoPoolSpecification(pool_lifetime_option="job", pool=made)
    return batchmodels.BatchJobCreateOptions(
        id=job_id, pool_info=batchmodels.BatchPoolInfo(auto_pool_specification=auto))


refused(lambda: batch.create_job(with_own_pool("own", [reference("nothing")])))
batch.create_job(with_own_pool("own", [reference("Tool", "2.0")]))
batch.create_task("own", task("t", "/bin/sh -c $AZ_BATCH_APP_PACKAGE_Tool_2_0/bin/say"))
task_of(batch, "own", "t")
assert stdout(batch, "own", "t") == "two\n"
batch.begin_delete_job("own", polling_interval=1).wait()

# New references count for nodes that come.
refused(lambda: batch.update_pool("p", batchmodels.BatchPoolUpdateOptions(
    application_package_references=[reference("nothing")])))
batch.update_pool("p", batchmodels.BatchPoolUpdateOptions(application_package_references=[reference("Tool", "2.0")]))
node = list(batch.list_nodes("p"))[0].id
# Without options this version of the SDK cannot write the request, and it does not export their class.
batch.begin_reboot_node("p", node, BatchNodeRebootOptions(node_reboot_kind="requeue"), polling_interval=1).wait()
until("the node is back", lambda: batch.get_node("p", node).state == "idle")
batch.create_task("j", task("again", "/bin/sh -c $AZ_BATCH_APP_PACKAGE_Tool_2_0/bin/say"))
task_of(batch, "j", "again")
assert stdout(batch, "j", "again") == "two\n"
print("packages: as it should be")

#!/usr/bin/env python3
"""What the task engine does beyond plain tasks, with the SDK of early 2017: `engine_2017.py <case>`."""

import datetime
import os
import pathlib
import sys
import time

import azure.batch.batch_auth as batchauth
import azure.batch.batch_service_client as batch
import azure.batch.models as batchmodels
from msrest.authentication import BasicTokenAuthentication

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT_SECONDS = 200


def until(what, condition):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RuntimeError("not within {} s: {}".format(TIMEOUT_SECONDS, what))
        time.sleep(0.1)


def make_pool(client, pool_id, nodes):
    client.pool.add(batchmodels.PoolAddParameter(
        pool_id, "small", target_dedicated=nodes,
        cloud_service_configuration=batchmodels.CloudServiceConfiguration("4")))


def schedules(client):
    make_pool(client, "p", 1)
    client.job_schedule.add(batchmodels.JobScheduleAddParameter(
        "s", batchmodels.Schedule(recurrence_interval=datetime.timedelta(hours=1)),
        batchmodels.JobSpecification(
            batchmodels.PoolInformation(pool_id="p"),
            priority=7, on_all_tasks_complete=batchmodels.OnAllTasksComplete.no_action)))
    assert client.job_schedule.exists("s")
    assert not client.job_schedule.exists("none")
    recent = until("the first job is there", lambda: client.job_schedule.get("s").execution_info.recent_job)
    assert recent.id == "s:job-1", recent.id
    assert [job.id for job in client.job.list_from_job_schedule("s")] == ["s:job-1"]
    assert [schedule.id for schedule in client.job_schedule.list()] == ["s"]
    assert client.job.get(recent.id).priority == 7
    client.job_schedule.disable("s")
    assert client.job_schedule.get("s").state == batchmodels.JobScheduleState.disabled
    client.job_schedule.enable("s")
    client.job_schedule.patch("s", batchmodels.JobSchedulePatchParameter(
        schedule=batchmodels.Schedule(recurrence_interval=datetime.timedelta(hours=2))))
    assert client.job_schedule.get("s").schedule.recurrence_interval == datetime.timedelta(hours=2)
    client.job_schedule.terminate("s")
    completed = batchmodels.JobScheduleState.completed
    until("the schedule is over", lambda: client.job_schedule.get("s").state == completed)
    assert client.job.get(recent.id).execution_info.terminate_reason == "TerminateJobSchedule"
    client.job_schedule.delete("s")
    until("the schedule is gone", lambda: not client.job_schedule.exists("s"))


def manager(client):
    """The job manager is this program again, with the token of its task."""
    make_pool(client, "p", 2)
    client.job.add(batchmodels.JobAddParameter(
        "j", batchmodels.PoolInformation(pool_id="p"),
        job_manager_task=batchmodels.JobManagerTask(
            "manager", "{} {} managed".format(sys.executable, pathlib.Path(__file__).resolve()), run_exclusive=False,
            authentication_token_settings=batchmodels.AuthenticationTokenSettings(
                [batchmodels.AccessScope.job]))))
    completed = batchmodels.JobState.completed
    until("the job is over", lambda: client.job.get("j").state == completed)
    ended = client.task.get("j", "manager").execution_info
    errors = b"".join(client.file.get_from_task("j", "manager", "stderr.txt")).decode()
    assert ended.exit_code == 0, (ended.exit_code, errors)
    assert client.task.get("j", "made").execution_info.exit_code == 0


def managed():
    token = BasicTokenAuthentication({"access_token": os.environ["AZ_BATCH_AUTHENTICATION_TOKEN"]})
    client = batch.BatchServiceClient(token, base_url=os.environ["AZ_BATCH_ACCOUNT_URL"])
    job_id = os.environ["AZ_BATCH_JOB_ID"]
    client.task.add(job_id, batchmodels.TaskAddParameter("made", "true"))
    completed = batchmodels.TaskState.completed
    until("the task is over", lambda: client.task.get(job_id, "made").state == completed)
    try:
        list(client.job.list())
    except batchmodels.BatchErrorException as error:
        assert "operations of its own job" in error.error.message.value, error
    else:
        raise AssertionError("the list of jobs is not for a task")


if __name__ == "__main__":
    case = sys.argv[1]
    if case == "managed":
        managed()
    else:
        credentials = batchauth.SharedKeyCredentials(
            os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"])
        globals()[case](batch.BatchServiceClient(credentials, base_url=os.environ["AZURE_BATCH_ENDPOINT"]))
    print("{}: as it should be".format(case))

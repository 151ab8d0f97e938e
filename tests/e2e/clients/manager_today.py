#!/usr/bin/env python3
"""A job manager: adds tasks to its own job with the token of its task, waits for them, and adds up their results."""

import os

import azure.batch.models as batchmodels
from azure.core.exceptions import HttpResponseError

from today import make_pool, stdout, task, task_client, task_of, token_credential_client

job_id = os.environ["AZ_BATCH_JOB_ID"]
assert "AZURE_BATCH_ACCESS_KEY" not in os.environ, "the account's key is not for tasks"
batch = task_client()
batch.create_tasks(job_id, [task(f"part-{number}", f"echo {number}") for number in range(1, 11)])
total = 0
for number in range(1, 11):
    done = task_of(batch, job_id, f"part-{number}")
    assert done.execution_info.exit_code == 0, done.execution_info
    total += int(stdout(batch, job_id, done.id))
print(f"sum of 10 results: {total}")
assert batch.get_job_task_counts(job_id).task_counts.succeeded == 10
batch.update_job(job_id, batchmodels.BatchJobUpdateOptions(priority=3))
assert token_credential_client().get_job(job_id).priority == 3

for name, call in {
    "another job": lambda: batch.get_job("other"),
    "a task of another job": lambda: batch.create_task("other", task("t")),
    "all jobs": lambda: list(batch.list_jobs()),
    "a new pool": lambda: make_pool(batch, "mine"),
    "all pools": lambda: list(batch.list_pools()),
    "files of a node": lambda: list(batch.list_node_files("p", done.node_info.node_id)),
}.items():
    try:
        call()
    except HttpResponseError as error:
        assert error.status_code == 403 and "operations of its own job" in str(error), (name, error)
    else:
        raise AssertionError(f"{name} is not for a task")

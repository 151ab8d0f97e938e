#!/usr/bin/env python3
"""Submits and polls with the SDK of today and its usual retries until the file `argv[1]` appears; writes the number of tasks
to it. Ends with an error at the first call that fails in spite of the retries.

Run it with the variables that `kiln env` prints, on a deployment with a pool `p`.
"""

import pathlib
import sys
import time

import azure.batch.models as batchmodels

from today import account_client, in_pool, task, until


def main():
    over = pathlib.Path(sys.argv[1])
    batch = account_client()
    batch.create_job(batchmodels.BatchJobCreateOptions(id="rolling", pool_info=in_pool("p")))
    print("begun", flush=True)
    count = 0
    while not over.exists():
        batch.create_task("rolling", task(f"t{count}", "true"))
        count += 1
        counts = batch.get_job_task_counts("rolling").task_counts
        assert counts.active + counts.running + counts.completed == count, counts
        time.sleep(0.05)
    until("all tasks are over",
          lambda: batch.get_job_task_counts("rolling").task_counts.completed == count)
    assert batch.get_job_task_counts("rolling").task_counts.succeeded == count
    over.write_text(str(count))


main()

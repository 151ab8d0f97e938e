#!/usr/bin/env python3
"""What the task engine does beyond plain tasks, with the SDK of today: `engine_today.py <case>`.

Run it with the variables that `kiln env` prints. Each case ends with an error if something is not as it should be.
"""

import pathlib
import sys

import azure.batch.models as batchmodels
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from today import account_client, in_pool, job_of, make_pool, minutes, stdout, task, task_of, until, virtual_machine

HERE = pathlib.Path(__file__).resolve().parent


def schedules(batch):
    make_pool(batch, "p")
    batch.create_job_schedule(batchmodels.BatchJobScheduleCreateOptions(
        id="s", display_name="every hour",
        schedule=batchmodels.BatchJobScheduleConfiguration(recurrence_interval=minutes(60), start_window=minutes(10)),
        job_specification=batchmodels.BatchJobSpecification(
            pool_info=in_pool("p"), priority=7, metadata=[batchmodels.BatchMetadataItem(name="of", value="job")]),
        metadata=[batchmodels.BatchMetadataItem(name="of", value="schedule")]))
    assert batch.job_schedule_exists("s")
    recent = until("the first job is there", lambda: batch.get_job_schedule("s").execution_info.recent_job)
    assert recent.id == "s:job-1", recent
    job = batch.get_job(recent.id)
    assert (job.priority, job.metadata[0].value, job.pool_info.pool_id) == (7, "job", "p"), job
    assert [job.id for job in batch.list_jobs_from_schedule("s")] == ["s:job-1"]
    assert [one.id for one in batch.list_job_schedules(filter="state eq 'active'")] == ["s"]

    # A task in a job with a colon in its id.
    batch.create_task(recent.id, task("t", "echo from a schedule"))
    task_of(batch, recent.id, "t")
    assert stdout(batch, recent.id, "t") == "from a schedule\n"

    schedule = batch.get_job_schedule("s")
    assert schedule.schedule.recurrence_interval == minutes(60), schedule.schedule
    assert schedule.execution_info.next_run_time > schedule.creation_time
    schedule.schedule.recurrence_interval = minutes(120)
    batch.replace_job_schedule("s", schedule)
    batch.update_job_schedule("s", batchmodels.BatchJobScheduleUpdateOptions(metadata=[]))
    schedule = batch.get_job_schedule("s")
    assert schedule.schedule.recurrence_interval == minutes(120) and not schedule.metadata, schedule
    batch.disable_job_schedule("s")
    assert batch.get_job_schedule("s").state == "disabled"
    batch.enable_job_schedule("s")
    assert batch.get_job_schedule("s").state == "active"

    batch.begin_terminate_job_schedule("s", polling_interval=1).wait()
    assert until("the schedule is over", lambda: batch.get_job_schedule("s").state == "completed")
    assert job_of(batch, recent.id).execution_info.termination_reason == "TerminateJobSchedule"
    batch.begin_delete_job_schedule("s", polling_interval=1).wait()
    for gone in (lambda: batch.get_job_schedule("s"), lambda: batch.get_job(recent.id)):
        try:
            gone()
        except ResourceNotFoundError:
            continue
        raise AssertionError("it is still there")


def dependencies(batch):
    make_pool(batch, "p", nodes=2, slots=2)
    batch.create_job(batchmodels.BatchJobCreateOptions(
        id="j", pool_info=in_pool("p"), uses_task_dependencies=True,
        task_failure_mode=batchmodels.BatchTaskFailureMode.PERFORM_EXIT_OPTIONS_JOB_ACTION))
    numbers = batchmodels.BatchTaskDependencies(task_id_ranges=[batchmodels.BatchTaskIdRange(start=1, end=20)])
    sum_up = batchmodels.BatchTaskDependencies(task_ids=["first", "lenient"], task_id_ranges=numbers.task_id_ranges)
    lenient = batchmodels.ExitConditions(default=batchmodels.ExitOptions(
        job_action=batchmodels.BatchJobActionKind.NONE, dependency_action=batchmodels.DependencyAction.SATISFY))
    after_first = batchmodels.BatchTaskDependencies(task_ids=["first"])
    # The last comes first: parents may be added later.
    tasks = [task("sum", "echo done", depends_on=sum_up)]
    tasks += [task(str(number), depends_on=after_first) for number in range(1, 21)]
    tasks += [task("lenient", "/bin/sh -c 'exit 3'", exit_conditions=lenient), task("first")]
    batch.create_tasks("j", tasks)
    last = task_of(batch, "j", "sum")
    assert stdout(batch, "j", "sum") == "done\n"
    assert last.depends_on.task_id_ranges[0].end == 20, last.depends_on
    ends = [one.execution_info.end_time for one in batch.list_tasks("j") if one.id != "sum"]
    assert len(ends) == 22 and max(ends) <= last.execution_info.start_time, (ends, last.execution_info)
    assert batch.get_task("j", "lenient").execution_info.exit_code == 3

    batch.create_job(batchmodels.BatchJobCreateOptions(id="plain", pool_info=in_pool("p")))
    try:
        batch.create_task("plain", task("t", depends_on=after_first))
    except HttpResponseError as error:
        assert "TaskDependenciesNotSpecifiedOnJob" in str(error), error
    else:
        raise AssertionError("dependencies in a job without them")


def preparation(batch):
    make_pool(batch, "p", nodes=2)
    batch.create_job(batchmodels.BatchJobCreateOptions(
        id="j", pool_info=in_pool("p"),
        job_preparation_task=batchmodels.BatchJobPreparationTask(command_line="/bin/sh -c 'echo ready > made'"),
        job_release_task=batchmodels.BatchJobReleaseTask(command_line="true", max_wall_clock_time=minutes(1))))
    job = batch.get_job("j")
    assert (job.job_preparation_task.id, job.job_preparation_task.wait_for_success) == ("jobpreparation", True)
    assert (job.job_release_task.id, job.job_release_task.max_wall_clock_time) == ("jobrelease", minutes(1))
    batch.create_task("j", task("t", "/bin/sh -c 'cat $AZ_BATCH_JOB_PREP_WORKING_DIR/made'"))
    done = task_of(batch, "j", "t")
    assert stdout(batch, "j", "t") == "ready\n"
    rows = list(batch.list_job_preparation_and_release_task_status("j"))
    assert [row.node_id for row in rows] == [done.node_info.node_id], rows
    prepared = rows[0].job_preparation_task_execution_info
    assert (prepared.state, prepared.exit_code, prepared.result) == ("completed", 0, "success"), prepared
    assert prepared.end_time <= done.execution_info.start_time
    assert rows[0].job_release_task_execution_info is None
    failed = "jobPreparationTaskExecutionInfo/exitCode ne 0"
    assert not list(batch.list_job_preparation_and_release_task_status("j", filter=failed))

    options = batchmodels._models.BatchJobTerminateOptions(termination_reason="enough")
    batch.begin_terminate_job("j", options, polling_interval=1).wait()
    assert job_of(batch, "j").execution_info.termination_reason == "enough"
    released = list(batch.list_job_preparation_and_release_task_status("j"))[0].job_release_task_execution_info
    assert (released.state, released.exit_code, released.result) == ("completed", 0, "success"), released


def instances(batch):
    make_pool(batch, "p", nodes=3, talk=True)
    batch.create_job(batchmodels.BatchJobCreateOptions(id="j", pool_info=in_pool("p")))
    batch.create_task("j", task(
        "t", "/bin/sh -c 'cat $AZ_BATCH_TASK_SHARED_DIR/coordinated; echo $AZ_BATCH_HOST_LIST'",
        multi_instance_settings=batchmodels.MultiInstanceSettings(
            number_of_instances=3,
            coordination_command_line="/bin/sh -c 'echo $AZ_BATCH_IS_CURRENT_NODE_MASTER"
                                      " > $AZ_BATCH_TASK_SHARED_DIR/coordinated'")))
    done = task_of(batch, "j", "t")
    assert done.execution_info.result == "success", done.execution_info
    first, hosts = stdout(batch, "j", "t").splitlines()
    assert (first, len(hosts.split(","))) == ("true", 3), (first, hosts)
    assert done.multi_instance_settings.number_of_instances == 3
    subtasks = sorted(batch.list_subtasks("j", "t"), key=lambda one: one.id)
    assert [one.id for one in subtasks] == [1, 2], subtasks
    nodes = {one.node_info.node_id for one in subtasks} | {done.node_info.node_id}
    assert len(nodes) == 3, nodes
    assert until("the subtasks are over", lambda: all(
        one.state == "completed" for one in batch.list_subtasks("j", "t")))
    batch.create_task("j", task("plain"))
    task_of(batch, "j", "plain")
    assert not list(batch.list_subtasks("j", "plain"))


def autopool(batch):
    batch.create_job(batchmodels.BatchJobCreateOptions(
        id="j", all_tasks_complete_mode=batchmodels.BatchAllTasksCompleteMode.NO_ACTION,
        pool_info=batchmodels.BatchPoolInfo(auto_pool_specification=batchmodels.BatchAutoPoolSpecification(
            auto_pool_id_prefix="made", pool_lifetime_option=batchmodels.BatchPoolLifetimeOption.JOB,
            pool=batchmodels.BatchPoolSpecification(
                vm_size="local", virtual_machine_configuration=virtual_machine(), target_dedicated_nodes=1)))))
    job = batch.get_job("j")
    pool_id = job.execution_info.pool_id
    assert pool_id.startswith("made_"), pool_id
    auto = job.pool_info.auto_pool_specification
    assert (auto.keep_alive, auto.pool.task_slots_per_node, job.pool_info.pool_id) == (False, 1, None), auto
    batch.create_task("j", task("t", "echo here"))
    assert task_of(batch, "j", "t").node_info.pool_id == pool_id
    assert batch.get_pool(pool_id).virtual_machine_configuration.node_agent_sku_id == "batch.node.ubuntu 22.04"
    # What was read goes back: no change.
    batch.replace_job("j", batch.get_job("j"))
    options = batchmodels._models.BatchJobTerminateOptions(termination_reason="enough")
    batch.begin_terminate_job("j", options, polling_interval=1).wait()

    def gone():
        try:
            return batch.get_pool(pool_id).state == "deleting" and None
        except ResourceNotFoundError:
            return True

    until("the pool is gone", gone)


def manager(batch):
    make_pool(batch, "p", nodes=2)
    make_pool(batch, "other")
    batch.create_job(batchmodels.BatchJobCreateOptions(id="other", pool_info=in_pool("other")))
    run = batchmodels.BatchJobManagerTask(
        id="manager", command_line=f"{sys.executable} {HERE / 'manager_today.py'}", run_exclusive=False)
    # The SDK of today has no model of it; the service takes it as before.
    run["authenticationTokenSettings"] = {"access": ["job"]}
    batch.create_job(batchmodels.BatchJobCreateOptions(id="j", pool_info=in_pool("p"), job_manager_task=run))
    job = job_of(batch, "j")
    output = stdout(batch, "j", "manager") + b"".join(
        batch.download_task_file("j", "manager", "stderr.txt")).decode()
    assert job.execution_info.termination_reason == "JMComplete", (job.execution_info, output)
    assert batch.get_task("j", "manager").execution_info.exit_code == 0, output
    assert "sum of 10 results: 55" in output, output
    assert len(list(batch.list_tasks("j"))) == 11


if __name__ == "__main__":
    case = sys.argv[1]
    globals()[case](account_client())
    print(f"{case}: as it should be")

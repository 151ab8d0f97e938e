//! What is refused, and with which word.

use kiln_proto::job::v1::{ExitConditions, ExitOptions, JobManagerTask, MultiInstanceSettings, TaskDependencies};

use super::*;

fn reason(error: Error) -> String {
    kiln_error::Error::from(error).reason().to_owned()
}

fn task() -> TaskSpec {
    TaskSpec { id: "t1".into(), command_line: "true".into(), ..TaskSpec::default() }
}

fn job() -> JobSpec {
    JobSpec { pool_id: "p1".into(), ..JobSpec::default() }
}

fn file(source: Option<Source>, file_path: &str) -> ResourceFile {
    ResourceFile { source, file_path: file_path.into(), ..ResourceFile::default() }
}

#[test]
fn tasks_that_are_refused() {
    let url = || Some(Source::HttpUrl("http://h/x".into()));
    let env = |name: &str| EnvironmentSetting { name: name.into(), value: "v".into() };
    let constraints = |count| Some(TaskConstraints { max_task_retry_count: Some(count), ..TaskConstraints::default() });
    type Change = Box<dyn Fn(&mut TaskSpec)>;
    let cases: Vec<(&str, Change)> = vec![
        ("MissingRequiredProperty", Box::new(|t| t.id.clear())),
        ("InvalidPropertyValue", Box::new(|t| t.id = "a/b".into())),
        ("InvalidPropertyValue", Box::new(|t| t.id = "x".repeat(65))),
        ("MissingRequiredProperty", Box::new(|t| t.command_line = "  ".into())),
        ("InvalidPropertyValue", Box::new(|t| t.required_slots = -1)),
        ("InvalidPropertyValue", Box::new(|t| t.required_slots = 257)),
        ("MissingRequiredProperty", Box::new(|t| t.resource_files.push(file(None, "x")))),
        ("MissingRequiredProperty", Box::new(move |t| t.resource_files.push(file(url(), "")))),
        ("InvalidPropertyValue", Box::new(move |t| t.resource_files.push(file(url(), "../x")))),
        ("InvalidPropertyValue", Box::new(move |t| t.resource_files.push(file(url(), "a/../../x")))),
        ("InvalidPropertyValue", Box::new(move |t| t.resource_files.push(file(url(), "/etc/passwd")))),
        (
            "InvalidPropertyValue",
            Box::new(|t| t.resource_files.push(file(Some(Source::HttpUrl("file:///etc".into())), "x"))),
        ),
        (
            "InvalidPropertyValue",
            Box::new(move |t| t.resource_files.push(ResourceFile { file_mode: "0999".into(), ..file(url(), "x") })),
        ),
        ("MissingRequiredProperty", Box::new(|t| t.output_files.push(OutputFile::default()))),
        ("InvalidPropertyValue", Box::new(move |t| t.environment.push(env("AZ_BATCH_JOB_ID")))),
        ("InvalidPropertyValue", Box::new(move |t| t.environment.push(env("A=B")))),
        ("InvalidPropertyValue", Box::new(move |t| t.environment = vec![env("A"), env("A")])),
        ("InvalidConstraintValue", Box::new(move |t| t.constraints = constraints(-2))),
        ("MissingRequiredProperty", Box::new(|t| t.multi_instance = Some(MultiInstanceSettings::default()))),
        ("InvalidPropertyValue", Box::new(|t| t.multi_instance = Some(instances(-1)))),
        ("InvalidPropertyValue", Box::new(|t| t.multi_instance = Some(instances(10_001)))),
        (
            "InvalidPropertyValue",
            Box::new(|t| {
                t.multi_instance = Some(instances(2));
                t.required_slots = 2;
            }),
        ),
        (
            "InvalidPropertyValue",
            Box::new(|t| {
                t.depends_on = Some(TaskDependencies { task_ids: vec!["bad/id".into()], task_id_ranges: vec![] });
            }),
        ),
        ("InvalidPropertyValue", Box::new(|t| t.exit_conditions = Some(unknown_action()))),
        ("RequestBodyTooLarge", Box::new(|t| t.command_line = "x".repeat(MAX_SPEC_BYTES))),
    ];
    for (at, (expected, change)) in cases.into_iter().enumerate() {
        let mut spec = task();
        change(&mut spec);
        let error = check_task(&spec).expect_err(&format!("case {at} ({expected})"));
        assert_eq!(reason(error), expected, "case {at}");
    }
}

fn instances(number_of_instances: i32) -> MultiInstanceSettings {
    MultiInstanceSettings {
        number_of_instances,
        coordination_command_line: "true".into(),
        ..MultiInstanceSettings::default()
    }
}

#[test]
fn the_number_of_instances_is_one_if_it_is_left_out() {
    for (asked, has) in [(0, 1), (1, 1), (7, 7)] {
        let spec = TaskSpec { multi_instance: Some(instances(asked)), ..task() };
        assert_eq!(check_task(&spec).unwrap().1.needs.instances, has);
    }
}

#[test]
fn facts_of_a_task() {
    let (id, facts) = check_task(&task()).unwrap();
    assert_eq!(id.as_str(), "t1");
    assert_eq!(facts, TaskFacts { needs: Needs::slots(1), max_retries: INHERIT_RETRIES, affinity: 0 });
    let hinted = TaskSpec { affinity_id: "TVM:Node-1".into(), required_slots: 4, ..task() };
    assert_eq!(check_task(&hinted).unwrap().1.affinity, affinity_hash("node-1"));
}

fn unknown_action() -> ExitConditions {
    ExitConditions { default: Some(ExitOptions { job_action: 0, dependency_action: 77 }), ..ExitConditions::default() }
}

#[test]
fn jobs_that_are_refused() {
    type Change = Box<dyn Fn(&mut JobSpec)>;
    let cases: Vec<(&str, Change)> = vec![
        ("MissingRequiredProperty", Box::new(|j| j.pool_id.clear())),
        ("InvalidPropertyValue", Box::new(|j| j.pool_id = "p 1".into())),
        ("OutOfRangePriority", Box::new(|j| j.priority = 1001)),
        ("InvalidPropertyValue", Box::new(|j| j.max_parallel_tasks = Some(0))),
        ("MissingRequiredProperty", Box::new(|j| j.job_manager_task = Some(JobManagerTask::default()))),
        ("InvalidPropertyValue", Box::new(|j| j.on_task_failure = 77)),
        ("EmptyMetadataKey", Box::new(|j| j.metadata.push(NameValue::default()))),
        (
            "InvalidConstraintValue",
            Box::new(|j| {
                j.constraints = Some(JobConstraints { max_task_retry_count: -2, ..JobConstraints::default() });
            }),
        ),
    ];
    for (at, (expected, change)) in cases.into_iter().enumerate() {
        let mut spec = job();
        change(&mut spec);
        assert_eq!(reason(check_job("j1", &spec).unwrap_err()), expected, "case {at}");
    }
    assert!(check_job("j:1", &job()).is_err());
    assert!(check_job("J1", &job()).is_ok());
}

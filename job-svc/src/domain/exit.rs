//! What the end of a task means for its job, and for the tasks that wait for it.
//!
//! Looked up in this order: exact exit code, range of exit codes, pre-processing
//! error, file upload error, default. An exit code that is named beats an upload
//! error. `default` stands in for the absent entries of the two errors, never
//! for exit code 0.

use kiln_proto::job::v1::{DependencyAction, ExitConditions, ExitOptions, JobAction as WireAction};

use super::task::{AttemptEnd, EndCause};

/// What to do with the job when a task ended like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobAction {
    /// Nothing.
    None,
    /// Disable it, tasks requeued.
    Disable,
    /// Terminate it.
    Terminate,
}

fn succeeded(end: &AttemptEnd) -> bool {
    end.cause == EndCause::Exited && end.exit_code == Some(0) && end.failure.is_none()
}

/// Whether an end that is final lets the tasks run that wait for this one. An
/// end by request counts as one that no code and no error describes.
pub fn satisfies(conditions: Option<&ExitConditions>, end: &AttemptEnd) -> bool {
    let action = conditions.and_then(|conditions| options(conditions, end)).map(ExitOptions::dependency_action);
    match action.unwrap_or(DependencyAction::Unspecified) {
        DependencyAction::Unspecified => succeeded(end),
        DependencyAction::Satisfy => true,
        DependencyAction::Block => false,
    }
}

/// The action for an end that is final.
pub fn job_action(conditions: Option<&ExitConditions>, end: &AttemptEnd) -> JobAction {
    let fallback = if succeeded(end) { JobAction::None } else { JobAction::Terminate };
    match conditions.and_then(|conditions| options(conditions, end)) {
        None => fallback,
        Some(options) => match options.job_action() {
            WireAction::Unspecified => fallback,
            WireAction::None => JobAction::None,
            WireAction::Disable => JobAction::Disable,
            WireAction::Terminate => JobAction::Terminate,
        },
    }
}

fn options<'a>(conditions: &'a ExitConditions, end: &AttemptEnd) -> Option<&'a ExitOptions> {
    let by_code = end.exit_code.and_then(|code| {
        let exact = conditions.exit_codes.iter().find(|mapping| mapping.code == code);
        let exact = exact.and_then(|mapping| mapping.exit_options.as_ref());
        exact.or_else(|| {
            let range = conditions.exit_code_ranges.iter().find(|range| (range.start..=range.end).contains(&code));
            range.and_then(|range| range.exit_options.as_ref())
        })
    });
    if by_code.is_some() {
        return by_code;
    }
    let default = conditions.default.as_ref();
    match end.cause {
        EndCause::PreProcessingError => conditions.pre_processing_error.as_ref().or(default),
        EndCause::FileUploadError => conditions.file_upload_error.as_ref().or(default),
        EndCause::Exited if end.exit_code == Some(0) => None,
        EndCause::Exited
        | EndCause::WallClockExpired
        | EndCause::Stopped
        | EndCause::AgentFailure
        | EndCause::PreparationFailed
        | EndCause::NotStarted => default,
    }
}

/// All options of all conditions.
pub fn all_options(conditions: &ExitConditions) -> impl Iterator<Item = &ExitOptions> {
    let codes = conditions.exit_codes.iter().map(|mapping| mapping.exit_options.as_ref());
    let ranges = conditions.exit_code_ranges.iter().map(|mapping| mapping.exit_options.as_ref());
    let rest = [&conditions.pre_processing_error, &conditions.file_upload_error, &conditions.default];
    codes.chain(ranges).chain(rest.into_iter().map(Option::as_ref)).flatten()
}

/// Whether any condition names a job action, which needs a job that performs them.
pub fn names_job_action(conditions: &ExitConditions) -> bool {
    let names = |action| action != WireAction::Unspecified && action != WireAction::None;
    all_options(conditions).any(|options| names(options.job_action()))
}

#[cfg(test)]
mod tests {
    use kiln_proto::job::v1::{ExitCodeMapping, ExitCodeRangeMapping};
    use kiln_time::Timestamp;

    use super::*;

    fn end(cause: EndCause, exit_code: Option<i32>) -> AttemptEnd {
        AttemptEnd { start: None, end: Timestamp::from_micros(1), exit_code, failure: None, cause, outputs_kept: false }
    }

    fn options(action: WireAction) -> Option<ExitOptions> {
        Some(ExitOptions { job_action: action.into(), dependency_action: 0 })
    }

    #[test]
    fn the_order_of_the_lookup() {
        let conditions = ExitConditions {
            exit_codes: vec![ExitCodeMapping { code: 3, exit_options: options(WireAction::None) }],
            exit_code_ranges: vec![ExitCodeRangeMapping {
                start: 2,
                end: 9,
                exit_options: options(WireAction::Disable),
            }],
            pre_processing_error: options(WireAction::Disable),
            file_upload_error: None,
            default: options(WireAction::None),
        };
        use EndCause::{Exited, FileUploadError, PreProcessingError, WallClockExpired};
        for (end, action) in [
            (end(Exited, Some(0)), JobAction::None),
            (end(Exited, Some(3)), JobAction::None),
            (end(Exited, Some(4)), JobAction::Disable),
            (end(Exited, Some(9)), JobAction::Disable),
            (end(Exited, Some(10)), JobAction::None),
            (end(PreProcessingError, None), JobAction::Disable),
            (end(FileUploadError, Some(0)), JobAction::None),
            (end(FileUploadError, Some(4)), JobAction::Disable),
            (end(WallClockExpired, Some(137)), JobAction::None),
        ] {
            assert_eq!(job_action(Some(&conditions), &end), action, "{end:?}");
        }
        let nothing = ExitConditions::default();
        for conditions in [None, Some(&nothing)] {
            assert_eq!(job_action(conditions, &end(Exited, Some(0))), JobAction::None);
            assert_eq!(job_action(conditions, &end(Exited, Some(1))), JobAction::Terminate);
            assert_eq!(job_action(conditions, &end(FileUploadError, Some(0))), JobAction::Terminate);
        }
        assert!(names_job_action(&conditions) && !names_job_action(&nothing));
    }

    #[test]
    fn dependants_run_after_success_unless_the_conditions_say_otherwise() {
        let says = |action: DependencyAction| Some(ExitOptions { job_action: 0, dependency_action: action.into() });
        let (satisfy, block) = (says(DependencyAction::Satisfy), says(DependencyAction::Block));
        use EndCause::{Exited, FileUploadError, PreProcessingError, Stopped};
        let failed_upload = end(FileUploadError, Some(0));
        for conditions in [None, Some(ExitConditions::default())] {
            assert!(satisfies(conditions.as_ref(), &end(Exited, Some(0))));
            for end in [&end(Exited, Some(1)), &failed_upload, &end(PreProcessingError, None), &end(Stopped, Some(0))] {
                assert!(!satisfies(conditions.as_ref(), end), "{end:?}");
            }
        }
        let conditions = ExitConditions {
            exit_codes: vec![ExitCodeMapping { code: 7, exit_options: block }],
            exit_code_ranges: vec![ExitCodeRangeMapping { start: 1, end: 9, exit_options: satisfy }],
            pre_processing_error: satisfy,
            file_upload_error: None,
            default: block,
        };
        for (end, wanted) in [
            (end(Exited, Some(0)), true),
            (end(Exited, Some(3)), true),
            (end(Exited, Some(7)), false),
            (end(Exited, Some(10)), false),
            (end(FileUploadError, Some(3)), true),
            (failed_upload, false),
            (end(PreProcessingError, None), true),
            (end(Stopped, None), false),
        ] {
            assert_eq!(satisfies(Some(&conditions), &end), wanted, "{end:?}");
        }
        // A word about the job alone says nothing about dependants.
        let other = ExitConditions { default: options(WireAction::None), ..ExitConditions::default() };
        assert!(!satisfies(Some(&other), &end(Exited, Some(1))));
    }
}

//! Why a request about jobs or tasks is refused.

use kiln_error::Kind;
use kiln_ids::InvalidId;
use kiln_store::StoreError;

/// See the variants; [`kiln_error::Error`] is what callers get.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such job.
    #[error("there is no job {0:?}")]
    JobNotFound(String),
    /// The id is taken.
    #[error("the job {0:?} exists already")]
    JobExists(String),
    /// A schedule has this id.
    #[error("a job schedule {0:?} exists already; jobs and schedules share their ids")]
    JobScheduleWithSameIdExists(String),
    /// There is no such schedule.
    #[error("there is no job schedule {0:?}")]
    JobScheduleNotFound(String),
    /// The id is taken.
    #[error("the job schedule {0:?} exists already")]
    JobScheduleExists(String),
    /// A job has this id.
    #[error("a job {0:?} exists already; jobs and schedules share their ids")]
    JobWithSameIdExists(String),
    /// The schedule is disabled already.
    #[error("the job schedule is disabled already")]
    JobScheduleDisabled,
    /// The schedule is ending.
    #[error("the job schedule is being terminated")]
    JobScheduleBeingTerminated,
    /// The schedule is over.
    #[error("the job schedule has completed; nothing about it can change any more")]
    JobScheduleCompleted,
    /// The schedule is being removed.
    #[error("the job schedule is being deleted")]
    JobScheduleBeingDeleted,
    /// There is no such task.
    #[error("there is no task {task:?} in the job {job:?}")]
    TaskNotFound {
        /// Job that was named.
        job: String,
        /// Task that was named.
        task: String,
    },
    /// The id is taken.
    #[error("the task {0:?} exists already in this job")]
    TaskExists(String),
    /// The id is that of the job's preparation or release task.
    #[error("the id {id:?} is that of the job's {what} task")]
    TaskIdReserved {
        /// Id as given.
        id: String,
        /// Whose id it is.
        what: &'static str,
        /// Azure's word.
        reason: &'static str,
    },
    /// The job has no preparation task.
    #[error("the job {0:?} has no preparation task")]
    NoPreparation(String),
    /// The job is being removed.
    #[error("the job is being deleted")]
    JobBeingDeleted,
    /// The job is ending.
    #[error("the job is being terminated")]
    JobBeingTerminated,
    /// The job is over.
    #[error("the job has completed; nothing about it can change any more")]
    JobCompleted,
    /// The job's state does not allow it.
    #[error("the job is {state}; {need}")]
    JobState {
        /// State it is in.
        state: &'static str,
        /// What would be needed.
        need: &'static str,
    },
    /// The task is over.
    #[error("the task has completed")]
    TaskCompleted,
    /// The task is not over.
    #[error("the task has not completed; only completed tasks can be reactivated")]
    TaskNotCompleted,
    /// A successful task cannot be run again.
    #[error("the task succeeded; only failed tasks can be reactivated")]
    TaskSucceeded,
    /// A precondition of the caller does not hold.
    #[error(transparent)]
    ConditionNotMet(kiln_etag::NotMet),
    /// A field has a value that is not allowed.
    #[error("{name}: {why}")]
    Invalid {
        /// Azure's word for the class of the error.
        reason: &'static str,
        /// Field.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// A task names parents in a job that does not use dependencies.
    #[error("dependsOn: the job of the task {0:?} was not created with usesTaskDependencies")]
    NoDependencies(String),
    /// A field is missing.
    #[error("{0} is required")]
    Missing(String),
    /// A feature that this service does not have (yet).
    #[error("{0} is not supported by this deployment; leave it out")]
    Unsupported(&'static str),
    /// Too much at once.
    #[error("{what} has {size}; at most {max} are allowed")]
    TooLarge {
        /// Field.
        what: &'static str,
        /// How much it has.
        size: usize,
        /// How much it may have.
        max: usize,
    },
    /// Not now.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// A field with a value that is not allowed.
    pub fn invalid(name: impl Into<String>, value: impl ToString, why: impl Into<String>) -> Self {
        Self::Invalid { reason: "InvalidPropertyValue", name: name.into(), value: value.to_string(), why: why.into() }
    }

    /// A field that holds no id.
    pub fn bad_id(name: &str, value: &str, why: &InvalidId) -> Self {
        Self::invalid(name, value, why.to_string())
    }
}

impl From<Error> for kiln_error::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let make = |kind, reason: &'static str| Self::new(kind, reason, text.clone());
        match error {
            Error::JobNotFound(_) => make(Kind::NotFound, "JobNotFound"),
            Error::JobExists(_) => make(Kind::AlreadyExists, "JobExists"),
            Error::JobScheduleWithSameIdExists(_) => make(Kind::AlreadyExists, "JobScheduleWithSameIdExists"),
            Error::JobScheduleNotFound(_) => make(Kind::NotFound, "JobScheduleNotFound"),
            Error::JobScheduleExists(_) => make(Kind::AlreadyExists, "JobScheduleExists"),
            Error::JobWithSameIdExists(_) => make(Kind::AlreadyExists, "JobWithSameIdExists"),
            Error::JobScheduleDisabled => make(Kind::FailedPrecondition, "JobScheduleDisabled"),
            Error::JobScheduleBeingTerminated => make(Kind::FailedPrecondition, "JobScheduleBeingTerminated"),
            Error::JobScheduleCompleted => make(Kind::FailedPrecondition, "JobScheduleCompleted"),
            Error::JobScheduleBeingDeleted => make(Kind::FailedPrecondition, "JobScheduleBeingDeleted"),
            Error::TaskNotFound { .. } => make(Kind::NotFound, "TaskNotFound"),
            Error::TaskExists(_) => make(Kind::AlreadyExists, "TaskExists"),
            Error::TaskIdReserved { reason, .. } => make(Kind::AlreadyExists, reason),
            Error::NoPreparation(_) => make(Kind::FailedPrecondition, "JobPreparationTaskNotSpecified"),
            Error::JobBeingDeleted => make(Kind::FailedPrecondition, "JobBeingDeleted"),
            Error::JobBeingTerminated => make(Kind::FailedPrecondition, "JobBeingTerminated"),
            Error::JobCompleted => make(Kind::FailedPrecondition, "JobCompleted"),
            Error::JobState { .. } => make(Kind::FailedPrecondition, "OperationInvalidForCurrentState"),
            Error::TaskCompleted => make(Kind::FailedPrecondition, "TaskCompleted"),
            Error::TaskNotCompleted => make(Kind::FailedPrecondition, "TaskNotCompleted"),
            Error::TaskSucceeded => make(Kind::FailedPrecondition, "TaskSucceeded"),
            Error::ConditionNotMet(not_met) => not_met.into(),
            Error::Invalid { reason, name, value, why } => Self::new(Kind::InvalidArgument, reason, text)
                .with_detail("PropertyName", name)
                .with_detail("PropertyValue", value)
                .with_detail("Reason", why),
            Error::NoDependencies(ref task) => make(Kind::InvalidArgument, "TaskDependenciesNotSpecifiedOnJob")
                .with_detail("PropertyName", "dependsOn")
                .with_detail("PropertyValue", task.clone()),
            Error::Missing(name) => Self::missing_property(&name),
            Error::Unsupported(name) => {
                make(Kind::Unimplemented, "UnsupportedProperty").with_detail("PropertyName", name)
            }
            Error::TooLarge { .. } => make(Kind::TooLarge, "RequestBodyTooLarge"),
            Error::Unavailable(_) => make(Kind::Unavailable, "ServerBusy"),
            Error::Store(error) => error.into(),
        }
    }
}

//! Why an attempt or a start task failed, in the codes of Azure Batch.

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// The task's author.
    User,
    /// Whoever runs the service.
    Server,
}

/// A failure as it is reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// Who has to act.
    pub category: Category,
    /// Stable word, for example `BlobNotFound`.
    pub code: &'static str,
    /// What was wrong and what to do.
    pub message: String,
    /// Names with values.
    pub details: Vec<(&'static str, String)>,
}

impl Failure {
    /// The author of the task can repair it.
    pub fn user(code: &'static str, message: impl Into<String>) -> Self {
        Self { category: Category::User, code, message: message.into(), details: Vec::new() }
    }

    /// The node or a service has a problem.
    pub fn server(code: &'static str, message: impl Into<String>) -> Self {
        Self { category: Category::Server, code, message: message.into(), details: Vec::new() }
    }

    /// Adds a name with a value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// The process ended with another code than 0.
    pub fn exit_code(code: i32) -> Self {
        Self::user("FailureExitCode", format!("the process ended with exit code {code}"))
    }
}

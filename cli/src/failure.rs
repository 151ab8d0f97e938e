//! How a command ends other than well, and with which exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the service refused, tasks failed, or something broke |
//! | 2 | the command line or a workflow file is wrong; nothing was started |
//! | 3 | no server can be reached |
//! | 4 | another server uses the data directory |
//! | 130 | stopped with Ctrl-C |

use std::fmt;

use kiln_error::Kind;

/// Why a command ended.
#[derive(Debug)]
pub enum Failure {
    /// The command line, a file or the environment has to be corrected.
    Usage(String),
    /// A service said no.
    Service(kiln_error::Error),
    /// Nobody answers.
    Unreachable(String),
    /// Another process holds the data directory.
    Running(String),
    /// Something else broke.
    Other(anyhow::Error),
    /// The user stopped it.
    Interrupted,
    /// All has been said; only the exit code is left.
    Silent(u8),
}

impl Failure {
    /// See the table of the module.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Service(error) if error.kind() == Kind::Unavailable => 3,
            Self::Service(_) | Self::Other(_) => 1,
            Self::Unreachable(_) => 3,
            Self::Running(_) => 4,
            Self::Interrupted => 130,
            Self::Silent(code) => *code,
        }
    }

    /// Names the server that was meant.
    #[must_use]
    pub fn at(self, endpoint: &str) -> Self {
        match self {
            Self::Unreachable(why) => Self::Unreachable(format!("{endpoint}: {why}")),
            other => other,
        }
    }

    /// Prints what happened: one line `error: reason: message`, then details.
    pub fn report(&self) {
        match self {
            Self::Silent(_) => {}
            Self::Service(error) => {
                eprintln!("error: {error}");
                for (name, value) in error.details() {
                    eprintln!("  {name}: {value}");
                }
                if let Some(after) = error.retry_after() {
                    eprintln!("  try again in {} s", after.as_secs().max(1));
                }
            }
            other => eprintln!("error: {other}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Unreachable(text) | Self::Running(text) => f.write_str(text),
            Self::Service(error) => write!(f, "{error}"),
            Self::Other(error) => write!(f, "{error:#}"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Silent(code) => write!(f, "exit code {code}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<kiln_error::Error> for Failure {
    fn from(error: kiln_error::Error) -> Self {
        Self::Service(error)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        if status.code() == tonic::Code::Unavailable && std::error::Error::source(&status).is_some() {
            let why = innermost(&status);
            if why.starts_with("TLS with") {
                return Self::Unreachable(format!("{why}; --ca-file names an authority to trust"));
            }
            return Self::Unreachable(format!(
                "the server does not answer ({why}); is it running? Start one with `kiln up`, or set KILN_ENDPOINT"
            ));
        }
        Self::Service(kiln_error::Error::from(status))
    }
}

/// The innermost cause: the outer ones only say "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::Other(error),
        }
    }
}

impl From<kiln_client::blobs::TransferError> for Failure {
    fn from(error: kiln_client::blobs::TransferError) -> Self {
        match error {
            kiln_client::blobs::TransferError::Service { status, .. } => Self::from(*status),
            other => Self::Other(other.into()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.into())
    }
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

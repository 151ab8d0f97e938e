//! The services of a deployment.

use std::io::Read;
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::{Failure, Outcome};

/// A service as a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// The front door.
    Gateway,
    /// Pools and nodes.
    PoolSvc,
    /// Jobs and tasks.
    JobSvc,
    /// The event log.
    MonitorSvc,
    /// Containers and blobs.
    StorageSvc,
}

/// In the order in which they are stopped: who is called last stops last.
pub const ALL: [Service; 5] =
    [Service::Gateway, Service::PoolSvc, Service::JobSvc, Service::MonitorSvc, Service::StorageSvc];

impl Service {
    /// For example `job-svc`; also its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::PoolSvc => "pool-svc",
            Self::JobSvc => "job-svc",
            Self::MonitorSvc => "monitor-svc",
            Self::StorageSvc => "storage-svc",
        }
    }
}

/// `kiln service`: hidden, because settings of services are for those who run
/// their programs.
#[derive(Debug, clap::Args)]
pub struct ServiceArgs {
    /// Which
    #[arg(value_enum)]
    service: Service,
    /// End in order when standard input ends: whoever started it is gone
    #[arg(long)]
    with_parent: bool,
    #[command(flatten)]
    flags: kiln_service::Flags,
}

impl ServiceArgs {
    /// Runs it until SIGTERM.
    ///
    /// # Errors
    /// What was wrong has been printed.
    pub fn run(self) -> Outcome {
        if self.with_parent {
            std::thread::spawn(|| {
                // What comes does not matter; an error means that nothing more does.
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                if let Err(error) = kill(Pid::this(), Signal::SIGTERM) {
                    eprintln!("error: the parent is gone, but SIGTERM cannot be sent: {error}");
                }
            });
        }
        let flags = &self.flags;
        let code = match self.service {
            Service::Gateway => gateway::process::main(flags),
            Service::PoolSvc => pool_svc::process::main(flags),
            Service::JobSvc => job_svc::process::main(flags),
            Service::MonitorSvc => monitor_svc::process::main(flags),
            Service::StorageSvc => storage_svc::process::main(flags),
        };
        if code == ExitCode::SUCCESS { Ok(()) } else { Err(Failure::Silent(1)) }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn names_are_those_of_the_command_line_and_none_is_missing() {
        for service in Service::value_variants() {
            assert_eq!(service.to_possible_value().unwrap().get_name(), service.name());
            assert!(ALL.contains(service));
        }
    }
}

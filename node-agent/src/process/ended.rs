//! The end of a process whose id has to stay taken.

use std::process::ExitStatus;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;

use super::supervisor::Running;

impl Running {
    /// Waits until the process has ended and tells how, but leaves the result
    /// where it is: its id, and its group's, are not given to others until
    /// [`Running::wait`] is called.
    ///
    /// # Errors
    /// As the system says.
    pub async fn ended(&self) -> std::io::Result<ExitStatus> {
        let pid = Pid::from_raw(self.pid());
        // A thread for each: only multi-instance tasks need this, and few run on a node.
        let work = move || loop {
            match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return result,
            }
        };
        // As `wait` puts it: the code above the signal.
        match tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?? {
            WaitStatus::Exited(_, code) => Ok(ExitStatus::from_raw((code & 0xff) << 8)),
            WaitStatus::Signaled(_, signal, _) => Ok(ExitStatus::from_raw(signal as i32)),
            other => Err(std::io::Error::other(format!("the process has not ended: {other:?}"))),
        }
    }
}

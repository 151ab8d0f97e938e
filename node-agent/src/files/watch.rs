//! Tells when a file has changed.
//!
//! The kernel says so (inotify) as soon as something was written. Where it
//! cannot, because it has no watches left or because another machine writes
//! through a shared file system, the file is simply looked at again after a while.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Without a watch a file is looked at this often.
const POLL: Duration = Duration::from_millis(40);
/// Though the kernel tells of changes: some file systems do not.
const POLL_WATCHED: Duration = Duration::from_millis(500);

/// Watches one open file.
#[derive(Debug)]
pub struct Watch {
    events: Option<AsyncFd<File>>,
}

impl Watch {
    /// Watches the file that `file` has open, wherever its name leads now.
    pub fn of(file: &impl AsRawFd) -> Self {
        let events = start(file).inspect_err(|error| tracing::debug!(%error, "a file is followed without a watch"));
        Self { events: events.ok() }
    }

    /// Completes when the file may have changed since the last call; changes
    /// before the first call count since the watch began.
    pub async fn changed(&mut self) {
        let Some(events) = &mut self.events else { return tokio::time::sleep(POLL).await };
        tokio::select! {
            ready = events.readable() => {
                let broken = match ready {
                    Ok(mut ready) => {
                        let drained = drain(ready.get_inner());
                        ready.clear_ready();
                        drained.is_err()
                    }
                    Err(_) => true,
                };
                if broken {
                    self.events = None;
                }
            }
            () = tokio::time::sleep(POLL_WATCHED) => {}
        }
    }
}

/// The pause before a file that does not exist is looked for again.
pub async fn pause() {
    tokio::time::sleep(POLL).await;
}

fn start(file: &impl AsRawFd) -> std::io::Result<AsyncFd<File>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify.add_watch(path.as_str(), AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)?;
    // Its replacement is unsafe.
    #[expect(deprecated, reason = "sound for a File, which owns its descriptor and keeps it")]
    AsyncFd::new(File::from(OwnedFd::from(inotify)))
}

/// Takes all events: only that there were some is of interest.
fn drain(mut events: &File) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match events.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_write_is_told_also_when_it_came_before_the_question() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let mut watch = Watch::of(&reader);
        assert!(watch.events.is_some(), "this machine has inotify");
        // The name may be gone.
        std::fs::remove_file(&path).unwrap();
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            let events = watch.events.as_mut().unwrap();
            drop(events.readable().await.unwrap());
            watch.changed().await;
            // Nothing is left over for the next round.
            assert!(drain(watch.events.as_ref().unwrap().get_ref()).is_ok());
        }
        Watch { events: None }.changed().await;
    }
}

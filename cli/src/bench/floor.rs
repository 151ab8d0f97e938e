//! The floor of task rates: what the operating system alone takes for the same work.
//!
//! A bare loop per thread, nothing around it. For each task it makes the task's
//! directory with its working directory, opens its two output files, starts the
//! program there in a process group of its own, and waits for it. `std` starts
//! such processes by `posix_spawn`; nothing here makes it fork. No service that keeps
//! the promise of one directory and two files per task can be faster than this.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Which part of the work is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Directory, working directory, two files, process.
    Task,
    /// The process alone: shows what the file system costs.
    Process,
}

/// Runs `count` processes of `true` on `threads` threads and tells how long that
/// took. Makes `dir`, which must not be there yet, and leaves the tasks'
/// directories in it: their removal is not part of the floor.
///
/// # Errors
/// When a directory, a file or a process cannot be made, or one fails.
pub fn run(count: u64, threads: usize, dir: &Path, work: Work) -> io::Result<Duration> {
    let program = find_true()?;
    DirBuilder::new().create(dir)?;
    let next = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let one = || -> io::Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                run_one(&program, dir, number, work)?;
            }
        };
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the floor has panicked")))
        })
    })?;
    Ok(began.elapsed())
}

fn run_one(program: &Path, dir: &Path, number: u64, work: Work) -> io::Result<()> {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).process_group(0);
    match work {
        Work::Task => {
            let task = dir.join(format!("task-{number:08}"));
            let working_dir = task.join("wd");
            DirBuilder::new().mode(0o770).create(&task)?;
            DirBuilder::new().mode(0o770).create(&working_dir)?;
            command.stdout(create(&task.join("stdout.txt"))?);
            command.stderr(create(&task.join("stderr.txt"))?);
            command.current_dir(working_dir);
        }
        Work::Process => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    let status = command.spawn()?.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{} ended with {status}", program.display()))) }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o660).open(path)
}

/// Found once, so that the loop does not search.
fn find_true() -> io::Result<PathBuf> {
    ["/usr/bin/true", "/bin/true"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::other("there is no program true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_gets_its_directory_and_files() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("floor");
        run(5, 2, &dir, Work::Task).unwrap();
        for number in 0..5 {
            let task = dir.join(format!("task-{number:08}"));
            assert!(task.join("wd").is_dir());
            assert!(task.join("stdout.txt").is_file() && task.join("stderr.txt").is_file());
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 5);
        assert!(run(1, 1, &dir, Work::Task).is_err(), "a floor that finds its directory made would do less work");
        run(3, 2, &base.path().join("bare"), Work::Process).unwrap();
        assert_eq!(std::fs::read_dir(base.path().join("bare")).unwrap().count(), 0);
    }
}

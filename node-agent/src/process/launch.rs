//! A command line becomes a running process.
//!
//! Processes are started on the `posix_spawn` path of the standard library: no
//! `pre_exec`, no `uid`, no `gid`, because each of these makes it fork, which
//! costs 80 times as much in a big agent.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::libc;

use crate::domain::command_line;
use crate::domain::failure::Failure;

/// A process to start.
#[derive(Debug)]
pub struct Launch {
    /// As its author wrote it.
    pub command_line: String,
    /// Its complete environment.
    pub environment: BTreeMap<String, String>,
    /// Its current directory.
    pub working_dir: PathBuf,
    /// Where its output goes.
    pub output: Output,
}

/// The files that receive the output of a process.
#[derive(Debug)]
pub struct Output {
    /// stdout.txt
    pub stdout: File,
    /// stderr.txt
    pub stderr: File,
}

impl Output {
    /// Creates stdout.txt and stderr.txt in `dir`, which is new.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn create(dir: &Path) -> std::io::Result<Self> {
        Ok(Self {
            stdout: create(&dir.join(kiln_node::STDOUT_FILE))?,
            stderr: create(&dir.join(kiln_node::STDERR_FILE))?,
        })
    }

    /// Creates or empties stdout.txt and stderr.txt in `dir`. A link or a pipe that an
    /// earlier attempt left in the place is removed, not followed.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn replace(dir: &Path) -> std::io::Result<Self> {
        for name in [kiln_node::STDOUT_FILE, kiln_node::STDERR_FILE] {
            let path = dir.join(name);
            if std::fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
                std::fs::remove_file(&path)?;
            }
        }
        Self::create(dir)
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o660).custom_flags(libc::O_NOFOLLOW).open(path)
}

impl Launch {
    /// The program and the words of the command line.
    ///
    /// # Errors
    /// `CommandProgramNotFound` or `CommandLaunchFailed`.
    pub fn resolve(&self) -> Result<(PathBuf, Vec<String>), Failure> {
        let words = command_line::split(&self.command_line)
            .map_err(|error| Failure::user("CommandLaunchFailed", format!("command line: {error}")))?;
        let search = self.environment.get("PATH").map(String::as_str).unwrap_or_default();
        Ok((find_program(&words[0], search, &self.working_dir)?, words))
    }

    /// The command that starts the process, in a process group of its own.
    ///
    /// # Errors
    /// `CommandProgramNotFound` or `CommandLaunchFailed`.
    pub fn into_command(self) -> Result<Command, Failure> {
        let (program, words) = self.resolve()?;
        let mut command = Command::new(program);
        command
            .arg0(&words[0])
            .args(&words[1..])
            .env_clear()
            .envs(self.environment)
            .current_dir(&self.working_dir)
            .stdin(Stdio::null())
            .stdout(self.output.stdout)
            .stderr(self.output.stderr)
            .process_group(0);
        Ok(command)
    }
}

/// Where the program is: below the working directory or absolute if its name
/// has a slash, else in the directories of `search`.
fn find_program(name: &str, search: &str, working_dir: &Path) -> Result<PathBuf, Failure> {
    let not_executable = |path: &Path| {
        Failure::user("CommandLaunchFailed", format!("{} is not an executable file", path.display()))
            .with("Program", name)
    };
    if name.contains('/') {
        let path = working_dir.join(name);
        return match executable(&path) {
            Some(true) => Ok(path),
            Some(false) => Err(not_executable(&path)),
            None => Err(Failure::user("CommandProgramNotFound", format!("there is no program {}", path.display()))
                .with("Program", name)),
        };
    }
    let mut useless = None;
    for directory in search.split(':') {
        // Also turns the empty entry into the working directory itself.
        let path = working_dir.join(directory).join(name);
        match executable(&path) {
            Some(true) => return Ok(path),
            Some(false) => useless = useless.or(Some(path)),
            None => {}
        }
    }
    match useless {
        Some(path) => Err(not_executable(&path)),
        None => {
            let message = format!("the program {name:?} is in none of the directories of PATH ({search})");
            Err(Failure::user("CommandProgramNotFound", message).with("Program", name))
        }
    }
}

/// Whether the file can be executed; `None` if it is not there.
fn executable(path: &Path) -> Option<bool> {
    let found = std::fs::metadata(path).ok()?;
    Some(found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Why the system refused to start a process.
pub fn launch_failure(error: &std::io::Error) -> Failure {
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT) => " (the interpreter in its first line, or its loader, is missing)",
        Some(libc::ENOEXEC) => " (neither a program for this machine nor a script with a #! line)",
        Some(libc::E2BIG) => " (arguments and environment together are too long)",
        _ => "",
    };
    Failure::user("CommandLaunchFailed", format!("the program cannot be started: {error}{hint}"))
}

/// The exit code as shells tell it: 128 + n for signal n.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let wd = dir.path();
        std::fs::create_dir(wd.join("bin")).unwrap();
        for (name, mode) in [("run.sh", 0o755), ("data", 0o644), ("bin/tool", 0o755)] {
            std::fs::write(wd.join(name), "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(wd.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let code = |name: &str, search: &str| find_program(name, search, wd).map_err(|failure| failure.code);
        assert_eq!(code("./run.sh", ""), Ok(wd.join("./run.sh")));
        assert_eq!(code("tool", "/nowhere:bin"), Ok(wd.join("bin/tool")));
        assert_eq!(code("run.sh", "/nowhere:"), Ok(wd.join("run.sh")));
        assert_eq!(code("run.sh", "/nowhere"), Err("CommandProgramNotFound"));
        assert_eq!(code("./missing", ""), Err("CommandProgramNotFound"));
        assert_eq!(code("./data", ""), Err("CommandLaunchFailed"));
        assert_eq!(code("data", "."), Err("CommandLaunchFailed"));
        assert_eq!(code("./bin", ""), Err("CommandLaunchFailed"));
        assert!(code("sh", "/bin").is_ok());
    }

    #[test]
    fn a_link_in_the_place_of_the_output_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "keep").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(kiln_node::STDOUT_FILE)).unwrap();
        assert!(Output::create(dir.path()).is_err());
        Output::replace(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "keep");
    }
}

//! A file system of its own for what may run out of room.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Room on it.
const SIZE: &str = "1500m";
/// Written at once until there is no room.
const BLOCK: usize = 1024 * 1024;

/// A file system in memory, mounted on a directory. Only root can do that.
#[derive(Debug)]
pub struct Disk {
    mounted: PathBuf,
}

impl Disk {
    /// Mounts it on `directory`, which must exist.
    ///
    /// # Errors
    /// Why that is not possible here, in a sentence.
    pub fn mount(directory: &Path) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can mount a small disk".to_owned());
        }
        let size = format!("size={SIZE}");
        let mounting = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "kiln-chaos"])
            .arg(directory)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("mount: {error}"))?;
        if !mounting.status.success() {
            return Err(format!("mount: {}", String::from_utf8_lossy(&mounting.stderr).trim()));
        }
        Ok(Self { mounted: directory.to_owned() })
    }

    /// Writes until there is no room any more; gives the bytes it took.
    pub fn fill(&self) -> usize {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let (mut block, mut written) = (vec![1; BLOCK], 0);
        // What does not fit as a whole may fit in part: to the last page.
        while !block.is_empty() {
            match file.write(&block) {
                Ok(some @ 1..) => written += some,
                Ok(0) | Err(_) => block.truncate(block.len() / 2),
            }
        }
        written
    }

    /// Gives the room back.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: processes that end at this moment may still have files open.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.mounted.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_and_has_room_again() {
        let directory = tempfile::tempdir().unwrap();
        let disk = match Disk::mount(directory.path()) {
            Ok(disk) => disk,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let file = directory.path().join("file");
        std::fs::write(&file, "a").unwrap();
        assert!(disk.fill() > BLOCK);
        assert!(std::fs::write(directory.path().join("other"), vec![0; 8192]).is_err());
        disk.free();
        std::fs::write(directory.path().join("other"), vec![0; 8192]).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"a");
        drop(disk);
        assert!(!file.exists());
    }
}

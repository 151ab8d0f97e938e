//! Directories get to belong to the users of tasks.
//!
//! The agent is root here and the names below a task's directory are the task's:
//! nothing is reached by a path that somebody could bend meanwhile, links are not
//! followed, and files that have a second name elsewhere are left alone.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{Gid, Uid, fchownat};

use super::shim::User;

/// Deeper directories are left as they are.
const MAX_DEPTH: usize = 200;

/// Everything in `dir` belongs to `user` from now on, and at last `dir` itself. Blocks.
///
/// # Errors
/// As the system says.
pub fn hand_over(dir: &Path, user: User, mode: u32) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut open = Dir::openat(AT_FDCWD, dir, flags, Mode::empty())?;
    below(&mut open, user, 0)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
    lchown(dir, Some(user.uid), Some(user.gid))
}

fn below(dir: &mut Dir, user: User, depth: usize) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let names: Vec<_> =
        dir.iter().filter_map(Result::ok).map(|entry| (entry.file_name().to_owned(), entry.file_type())).collect();
    for (name, kind) in names {
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let fd = dir.as_fd();
        let found = fstatat(fd, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let is_dir = kind == Some(Type::Directory) || is_dir(&found);
        if is_dir && depth < MAX_DEPTH {
            below(&mut Dir::openat(fd, name.as_c_str(), flags, Mode::empty())?, user, depth + 1)?;
        }
        if (is_dir || found.st_nlink == 1) && (found.st_uid, found.st_gid) != (user.uid, user.gid) {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            fchownat(fd, name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

fn is_dir(found: &FileStat) -> bool {
    found.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
}

/// The directory itself belongs to the agent, and nobody else enters it. A
/// directory that is not there is no error. Blocks.
///
/// # Errors
/// As the system says.
pub fn take_back(dir: &Path) -> io::Result<()> {
    let take = || {
        let own = nix::unistd::geteuid().as_raw();
        if std::fs::symlink_metadata(dir)?.uid() != own {
            lchown(dir, Some(own), Some(nix::unistd::getegid().as_raw()))?;
        }
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
    };
    match take() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lets users enter the node's root, and nothing else of its directory. Blocks.
///
/// # Errors
/// When one of the directories above cannot be entered.
pub fn open_way(node_dir: &Path) -> io::Result<()> {
    let set = |path: &Path, mode: u32| match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for above in node_dir.ancestors().skip(1) {
        if std::fs::metadata(above)?.permissions().mode() & 0o001 == 0 {
            return Err(io::Error::other(format!("users other than the agent's cannot enter {}", above.display())));
        }
    }
    for entry in std::fs::read_dir(node_dir)?.flatten() {
        if entry.file_name() != kiln_node::ROOT_DIR {
            set(&entry.path(), if entry.file_type()?.is_dir() { 0o700 } else { 0o600 })?;
        }
    }
    let root = node_dir.join(kiln_node::ROOT_DIR);
    set(&root, 0o755)?;
    set(&root.join(kiln_node::WORKITEMS_DIR), 0o711)?;
    set(&root.join(kiln_node::SHARED_DIR), 0o1777)?;
    set(&root.join("volatile"), 0o700)?;
    set(node_dir, 0o711)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_of_a_directory_is_not_given_away() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let (dir, outside) = (temp.path().join("task"), temp.path().join("outside"));
        std::fs::create_dir_all(dir.join("wd/deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for file in [dir.join("wd/deep/f"), outside.join("f"), outside.join("g")] {
            std::fs::write(file, "x").unwrap();
        }
        std::os::unix::fs::symlink(&outside, dir.join("wd/link")).unwrap();
        std::fs::hard_link(outside.join("g"), dir.join("wd/second-name")).unwrap();
        let user = User { uid: 0x7000_0000, gid: 0x7000_0000 };
        hand_over(&dir, user, 0o700).unwrap();
        let owner = |path: &Path| std::fs::symlink_metadata(path).unwrap().uid();
        for given in ["", "wd", "wd/deep", "wd/deep/f", "wd/link"] {
            assert_eq!(owner(&dir.join(given)), user.uid, "{given}");
        }
        for kept in ["", "f", "g"] {
            assert_eq!(owner(&outside.join(kept)), 0, "{kept}");
        }
        take_back(&dir).unwrap();
        assert_eq!(owner(&dir), 0);
        take_back(&dir.join("missing")).unwrap();
    }
}

//! Users for tasks: numbers, without entries in `/etc/passwd`.
//!
//! A node has a range of ids for itself. Nodes of one machine agree on their ranges by
//! binding a name in the abstract namespace of sockets, which ends with the
//! agent. The range of the last life is tried first, so that files of the node's
//! user stay its own. A user of one task costs nothing but the next number.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::shim::User;
use crate::domain::identity::{MAX_ACCOUNTS, Whom};

/// Nobody else hands these out: they are above the ranges of containers.
const FIRST_ID: u32 = 0x7000_0000;
const RANGE: u32 = 0x1_0000;
const RANGES: u32 = 1024;
/// Which range the last life had; in the node's state.
const FILE: &str = "users";

/// The ids of one node.
#[derive(Debug)]
pub struct Users {
    first: u32,
    tasks: AtomicU32,
    /// Holds the range.
    _claim: UnixListener,
}

impl Users {
    /// Takes a range; `state` remembers it. Blocks.
    ///
    /// # Errors
    /// When all are taken, or `state` cannot be written.
    pub fn claim(state: &Path) -> io::Result<Self> {
        let file = state.join(FILE);
        let last = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        for range in last.into_iter().filter(|range| *range < RANGES).chain(0..RANGES) {
            let name = SocketAddr::from_abstract_name(format!("kiln-users-{range}"))?;
            match UnixListener::bind_addr(&name) {
                Ok(claim) => {
                    std::fs::write(&file, range.to_string())?;
                    return Ok(Self { first: FIRST_ID + range * RANGE, tasks: AtomicU32::new(0), _claim: claim });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("all ranges of user ids are taken"))
    }

    /// The user; a new one for each task. `None` is the agent's own.
    pub fn user(&self, whom: Whom) -> Option<User> {
        let of_node = |offset: u32| User { uid: self.first + offset, gid: self.first + offset };
        match whom {
            Whom::Agent => None,
            Whom::Pool => Some(of_node(0)),
            Whom::Account(place) => Some(of_node(1 + place)),
            Whom::Ids { uid, gid } => Some(User { uid, gid }),
            Whom::Task => {
                let reserved = 1 + MAX_ACCOUNTS;
                let number = self.tasks.fetch_add(1, Ordering::Relaxed);
                Some(of_node(reserved + number % (RANGE - reserved)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_machine_have_different_users_and_keep_them() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let claim = |number: usize| Users::claim(dirs[number].path()).unwrap();
        let (a, b) = (claim(0), claim(1));
        let pool = a.user(Whom::Pool).unwrap();
        assert_ne!(Some(pool), b.user(Whom::Pool));
        assert_eq!(a.user(Whom::Agent), None);
        let tasks: std::collections::HashSet<u32> =
            (0..100).filter_map(|_| a.user(Whom::Task)).map(|user| user.uid).collect();
        assert_eq!(tasks.len(), 100);
        assert!(!tasks.contains(&pool.uid) && tasks.iter().all(|uid| (a.first..a.first + RANGE).contains(uid)));
        assert_eq!(a.user(Whom::Ids { uid: 5, gid: 6 }), Some(User { uid: 5, gid: 6 }));
        drop(a);
        assert_eq!(claim(0).user(Whom::Pool), Some(pool));
    }
}

//! As whom a process runs.
//!
//! | asked for | agent is root | agent is not |
//! |---|---|---|
//! | nothing | the agent's user | the agent's user |
//! | automatic, pool, not admin | the node's user for all such tasks | the agent's user |
//! | automatic, task, not admin | a user of its own | refused |
//! | automatic, admin | root | refused |
//! | named, not admin | that user | refused |
//! | named, admin | root | refused |
//!
//! Without a wish a task runs as the agent's user: changing it costs a second
//! program start, which most tasks of most deployments would pay for nothing. A pool that
//! is shared by people who do not trust each other asks for users.

use super::failure::Failure;

/// What a task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Nothing.
    None,
    /// A user of the pool.
    Named(&'a str),
    /// A user that is made for it.
    Auto {
        /// For the task alone.
        own: bool,
        /// With all rights.
        admin: bool,
    },
}

/// A named user of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account<'a> {
    /// Its name.
    pub name: &'a str,
    /// With all rights.
    pub admin: bool,
    /// As the pool says.
    pub uid: Option<u32>,
    /// As the pool says.
    pub gid: Option<u32>,
}

/// As whom a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The agent's own user.
    Agent,
    /// The user of all tasks that ask for nothing special.
    Pool,
    /// A user of the task alone.
    Task,
    /// The pool's account at this place of its list.
    Account(u32),
    /// A user with ids that the pool has given.
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// Most named users of a pool.
pub const MAX_ACCOUNTS: u32 = 999;

/// As whom a process with this wish runs.
///
/// # Errors
/// When it cannot be given.
pub fn whom(wish: &Wish<'_>, accounts: &[Account<'_>], agent_is_root: bool) -> Result<Whom, Failure> {
    let refused = |what: &str| {
        Err(unavailable(&format!("{what} needs an agent that runs as root, and the one of this node does not")))
    };
    match wish {
        Wish::None => Ok(Whom::Agent),
        Wish::Auto { own: false, admin: false } => Ok(if agent_is_root { Whom::Pool } else { Whom::Agent }),
        Wish::Auto { admin: true, .. } => {
            if agent_is_root {
                Ok(Whom::Agent)
            } else {
                refused("an admin user")
            }
        }
        Wish::Auto { own: true, admin: false } => {
            if agent_is_root {
                Ok(Whom::Task)
            } else {
                refused("a user of the task's own")
            }
        }
        Wish::Named(name) => {
            let found = accounts.iter().zip(0..MAX_ACCOUNTS).find(|(account, _)| account.name == *name);
            let Some((account, place)) = found else {
                return Err(unavailable(&format!("the pool has no user account {name:?}")));
            };
            match account {
                _ if !agent_is_root => refused(&format!("the user account {name:?}")),
                Account { admin: true, .. } => Ok(Whom::Agent),
                Account { uid: Some(uid), gid, .. } => Ok(Whom::Ids { uid: *uid, gid: gid.unwrap_or(*uid) }),
                Account { uid: None, .. } => Ok(Whom::Account(place)),
            }
        }
    }
}

/// An identity that this node cannot give.
pub fn unavailable(why: &str) -> Failure {
    Failure::user("UserIdentityUnavailable", format!("user identity: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        let account = |name, admin, uid| Account { name, admin, uid, gid: None };
        let accounts = [account("boss", true, None), account("ann", false, None), account("bob", false, Some(5000))];
        let cell = |wish: &Wish<'_>, root| whom(wish, &accounts, root).map_err(|failure| failure.code);
        let refused = Err("UserIdentityUnavailable");
        let auto = |own, admin| Wish::Auto { own, admin };
        for (wish, as_root, as_user) in [
            (Wish::None, Ok(Whom::Agent), Ok(Whom::Agent)),
            (auto(false, false), Ok(Whom::Pool), Ok(Whom::Agent)),
            (auto(true, false), Ok(Whom::Task), refused),
            (auto(false, true), Ok(Whom::Agent), refused),
            (auto(true, true), Ok(Whom::Agent), refused),
            (Wish::Named("boss"), Ok(Whom::Agent), refused),
            (Wish::Named("ann"), Ok(Whom::Account(1)), refused),
            (Wish::Named("bob"), Ok(Whom::Ids { uid: 5000, gid: 5000 }), refused),
            (Wish::Named("eve"), refused, refused),
        ] {
            assert_eq!((cell(&wish, true), cell(&wish, false)), (as_root, as_user), "{wish:?}");
        }
    }
}

//! The server that `kiln run` and `kiln exec` work with: one that runs already,
//! or one of their own for as long as they need it.

use std::path::PathBuf;

use kiln_client::Client;

use crate::connect::{ConnectArgs, Target};
use crate::failure::Outcome;
use crate::up::Embedded;

/// A server to work with.
#[derive(Debug)]
pub struct Session {
    /// A client of it.
    pub client: Client,
    /// Where it is.
    pub target: Target,
    embedded: Option<Embedded>,
}

impl Session {
    /// The server the flags mean, if it runs and `embedded` is not asked for;
    /// else a new one.
    ///
    /// # Errors
    /// If the flags contradict themselves or a new server cannot start.
    pub async fn open(connect: &ConnectArgs, embedded: bool) -> Outcome<Self> {
        let found = if embedded { None } else { connect.find()? };
        let (target, embedded) = match found {
            Some(target) => (target, None),
            None => {
                let embedded = Embedded::start().await?;
                (embedded.target().clone(), Some(embedded))
            }
        };
        Ok(Self { client: target.client()?, target, embedded })
    }

    /// Whether the server vanishes with the session, and all that is on it.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Ends it. An embedded server is stopped; its data is kept if `keep` says
    /// so, and the directory is returned.
    pub async fn close(self, keep: bool) -> Option<PathBuf> {
        // Open connections would make the server wait for them.
        drop(self.client);
        match self.embedded {
            Some(embedded) => embedded.stop(keep).await,
            None => None,
        }
    }
}

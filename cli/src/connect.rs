//! Which server a command talks to.
//!
//! In this order: `--endpoint`, `--data` (the server that runs on it),
//! `KILN_ENDPOINT`, the server that runs on the default data directory.

use std::path::PathBuf;

use kiln_client::Client;

use crate::failure::{Failure, Outcome};
use crate::up::deployment::Deployment;
use crate::up::dir;
use crate::up::running::Running;

/// A server and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// URL of the front door.
    pub endpoint: String,
    /// Account.
    pub account: String,
    /// One of its keys; Base64.
    pub key: String,
    /// File with the authorities that vouch for it; absent means those of this system.
    pub authority: Option<PathBuf>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("endpoint", &self.endpoint)
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// Where to look for a server, from flags and environment.
#[derive(Clone, Default, clap::Args)]
pub struct ConnectArgs {
    /// URL of the server [env: KILN_ENDPOINT; account and key: KILN_ACCOUNT, KILN_ACCOUNT_KEY]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub endpoint: Option<String>,
    /// Account to work in [env: KILN_ACCOUNT]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub account: Option<String>,
    /// Data directory; its running server is used if no endpoint is given
    /// [env: KILN_DATA; default: ~/.local/share/kiln]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Connection")]
    pub data: Option<PathBuf>,
    /// File with the certificate authority of an https server (PEM)
    /// [env: KILN_CA_FILE; default: what this system trusts]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for ConnectArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectArgs")
            .field("endpoint", &self.endpoint)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// The environment, so that tests can give another one.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl ConnectArgs {
    /// The data directory these flags mean.
    ///
    /// # Errors
    /// If there is neither a flag nor a home directory.
    pub fn data_dir(&self) -> Outcome<PathBuf> {
        self.data.clone().map_or_else(dir::default_path, Ok)
    }

    /// The server, if one is named or runs.
    ///
    /// # Errors
    /// If one is named without account or key.
    pub fn find(&self) -> Outcome<Option<Target>> {
        self.find_with(&environment)
    }

    fn find_with(&self, lookup: Lookup<'_>) -> Outcome<Option<Target>> {
        let endpoint = match (&self.endpoint, &self.data) {
            (Some(endpoint), _) => Some(endpoint.clone()),
            (None, Some(_)) => None,
            (None, None) => lookup("KILN_ENDPOINT"),
        };
        let Some(endpoint) = endpoint else { return self.find_local() };
        let local = self.find_local().ok().flatten().filter(|target| target.endpoint == endpoint);
        let account = self
            .account
            .clone()
            .or_else(|| lookup("KILN_ACCOUNT"))
            .or_else(|| local.as_ref().map(|target| target.account.clone()));
        let key = lookup("KILN_ACCOUNT_KEY").or_else(|| local.map(|target| target.key));
        match (account, key) {
            (Some(account), Some(key)) => {
                let authority = self.authority_with(lookup);
                Ok(Some(Target { endpoint, account, key, authority }))
            }
            (None, _) => Err(missing(&endpoint, "KILN_ACCOUNT (or --account)")),
            (_, None) => Err(missing(&endpoint, "KILN_ACCOUNT_KEY")),
        }
    }

    /// File with the authorities to trust, if one is named.
    pub fn authority(&self) -> Option<PathBuf> {
        self.authority_with(&environment)
    }

    fn authority_with(&self, lookup: Lookup<'_>) -> Option<PathBuf> {
        self.ca_file.clone().or_else(|| lookup("KILN_CA_FILE").map(PathBuf::from))
    }

    /// The server that runs on the data directory.
    fn find_local(&self) -> Outcome<Option<Target>> {
        let data = self.data_dir()?;
        let Some(running) = Running::find(&data) else { return Ok(None) };
        let Some(deployment) = Deployment::read(&data)? else { return Ok(None) };
        Ok(Some(Target {
            endpoint: running.endpoint,
            account: deployment.account,
            key: deployment.key1,
            authority: None,
        }))
    }

    /// The server; an error that says what to do if there is none.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub fn require(&self) -> Outcome<Target> {
        if let Some(target) = self.find()? {
            return Ok(target);
        }
        let data = self.data_dir()?;
        Err(Failure::Unreachable(format!(
            "no server runs on {}; start one with `kiln up`, or set KILN_ENDPOINT, KILN_ACCOUNT and KILN_ACCOUNT_KEY",
            data.display()
        )))
    }

    /// A client of [`ConnectArgs::require`].
    ///
    /// # Errors
    /// As there, or if endpoint or key are malformed.
    pub fn client(&self) -> Outcome<Client> {
        self.require()?.client()
    }
}

fn missing(endpoint: &str, what: &str) -> Failure {
    Failure::Usage(format!("{endpoint} needs credentials: set {what}; `kiln env` on the server's machine prints them"))
}

impl Target {
    /// A client of this server.
    ///
    /// # Errors
    /// If endpoint or key are malformed.
    pub fn client(&self) -> Outcome<Client> {
        let Self { endpoint, account, key, authority } = self;
        let client = match authority {
            Some(authority) => Client::connect_trusting(endpoint, account, key, authority),
            None => Client::connect(endpoint, account, key),
        };
        client.map_err(|error| Failure::Usage(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::deployment::Wanted;
    use crate::up::dir::DataDir;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_a_local_server() {
        let dir = tempfile::tempdir().unwrap();
        let data = Some(dir.path().to_owned());
        let of_data = ConnectArgs { data, ..ConnectArgs::default() };
        assert_eq!(of_data.find_with(&none).unwrap(), None);

        let held = DataDir::lock(dir.path()).unwrap();
        let deployment = Deployment::create(Wanted::default()).unwrap();
        deployment.write(dir.path()).unwrap();
        let running = Running {
            pid: 1,
            endpoint: "http://127.0.0.1:9".to_owned(),
            blob_endpoint: "http://b".to_owned(),
            processes: Vec::new(),
        };
        running.announce(dir.path()).unwrap();
        let local = of_data.find_with(&none).unwrap().unwrap();
        assert_eq!((local.endpoint.as_str(), &local.key), ("http://127.0.0.1:9", &deployment.key1));

        // A named data directory is not overruled by the environment.
        let env = |name: &str| Some(format!("http://{name}"));
        assert_eq!(of_data.find_with(&env).unwrap().unwrap().endpoint, "http://127.0.0.1:9");
        let plain = ConnectArgs { endpoint: Some("http://x".to_owned()), ..of_data.clone() };
        assert_eq!(plain.find_with(&env).unwrap().unwrap().account, "http://KILN_ACCOUNT");
        assert!(plain.find_with(&none).unwrap_err().to_string().contains("KILN_ACCOUNT"));
        // The endpoint of the local server needs no credentials.
        let same = ConnectArgs { endpoint: Some("http://127.0.0.1:9".to_owned()), ..of_data };
        assert_eq!(same.find_with(&none).unwrap().unwrap().key, deployment.key1);
        drop(held);
    }
}

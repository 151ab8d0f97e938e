//! `cluster.json`: what the replicas of a deployment are called and where they
//! listen. Made at the first start; ports change only if somebody took them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::super::deployment::Deployment;
use super::super::dir::write_atomic;
use crate::failure::{Failure, Outcome};

const FILE: &str = "cluster.json";
const FORMAT: u32 = 1;

/// Content of `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this file's form.
    format: u32,
    /// Tells the deployment from others on the same servers: its schemas and
    /// queues begin with it.
    pub name: String,
    /// By process and purpose, such as `storage-svc-1/blob`.
    ports: BTreeMap<String, u16>,
}

impl Record {
    /// That of `data`, or a new one if nothing is there.
    ///
    /// # Errors
    /// If the directory is one of a `kiln up` in one process, or a file cannot be read.
    pub fn read_or_create(data: &Path) -> Outcome<Self> {
        let path = data.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if Deployment::read(data)?.is_some() {
                    return Err(Failure::Usage(format!(
                        "{} has a deployment in one process; give the other kind a directory of its own with --data",
                        data.display()
                    )));
                }
                // Names of schemas begin with a letter.
                let name = format!("kiln_{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
                return Ok(Self { format: FORMAT, name, ports: BTreeMap::new() });
            }
            Err(error) => return Err(anyhow::Error::new(error).context(path.display().to_string()).into()),
        };
        let record: Self = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        if record.format != FORMAT {
            let message = format!("{} was written by another version of kiln", path.display());
            return Err(Failure::Other(anyhow::anyhow!(message)));
        }
        Ok(record)
    }

    /// Keeps it for the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, data: &Path) -> Outcome {
        let path = data.join(FILE);
        let text = serde_json::to_vec_pretty(self).context("cluster file")?;
        write_atomic(&path, &text).with_context(|| path.display().to_string())?;
        Ok(())
    }

    /// The port for `purpose`: the same as before if it is free. It is held by the
    /// listener that comes with it until the process takes it over.
    ///
    /// # Errors
    /// If this machine has no free port.
    pub fn port(&mut self, purpose: String) -> Outcome<(u16, TcpListener)> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let last = self.ports.get(&purpose).copied().unwrap_or(0);
        let listener = bind(last).or_else(|error| if last == 0 { Err(error) } else { bind(0) });
        let listener = listener.context("cannot listen on 127.0.0.1")?;
        let port = listener.local_addr().context("listener")?.port();
        if last != 0 && port != last {
            tracing::warn!(purpose, last, port, "the port of the last start is taken; another one is used");
        }
        self.ports.insert(purpose, port);
        Ok((port, listener))
    }
}

/// Refuses to run in one process what is a deployment of several.
///
/// # Errors
/// If it is one.
pub fn refuse(data: &Path) -> Outcome {
    if data.join(FILE).exists() {
        let data = data.display();
        return Err(Failure::Usage(format!(
            "{data} has a deployment of several processes; start it with --cluster-dev, or give another directory \
             with --data"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::deployment::Wanted;
    use super::*;

    #[test]
    fn ports_stay_the_same_unless_they_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::read_or_create(dir.path()).unwrap();
        let (port, held) = record.port("a".to_owned()).unwrap();
        record.write(dir.path()).unwrap();
        let mut again = Record::read_or_create(dir.path()).unwrap();
        assert_eq!(again, record);
        assert_ne!(again.clone().port("a".to_owned()).unwrap().0, port);
        drop(held);
        assert_eq!(again.port("a".to_owned()).unwrap().0, port);
    }

    #[test]
    fn the_two_kinds_keep_out_of_each_others_directories() {
        let dir = tempfile::tempdir().unwrap();
        refuse(dir.path()).unwrap();
        Record::read_or_create(dir.path()).unwrap().write(dir.path()).unwrap();
        assert_eq!(refuse(dir.path()).unwrap_err().exit_code(), 2);
        let other = tempfile::tempdir().unwrap();
        Deployment::create(Wanted::default()).unwrap().write(other.path()).unwrap();
        assert_eq!(Record::read_or_create(other.path()).unwrap_err().exit_code(), 2);
    }
}

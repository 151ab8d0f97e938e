//! Servers of other makers that tests talk to, each a process on a free port that
//! ends with the test. `tests/run setup` installs them into `.tools`; another
//! directory is named by `KILN_TEST_TOOLS`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// A running server.
#[derive(Debug)]
pub struct TestServer {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl TestServer {
    /// Amazon S3, as moto understands it, empty; it takes any key.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    pub fn s3() -> Self {
        Self::start("moto/bin/moto_server", |port| ["-H", "127.0.0.1", "-p", &port].map(str::to_owned).to_vec())
    }

    /// Azure Blob Storage, as Azurite understands it, empty, with the account of
    /// all emulators (`devstoreaccount1`).
    ///
    /// # Panics
    /// If it is not installed or does not start.
    pub fn azure() -> Self {
        Self::start("azurite/node_modules/.bin/azurite-blob", |port| {
            let mut flags = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobPort"].to_vec();
            flags.push(&port);
            flags.into_iter().map(str::to_owned).collect()
        })
    }

    fn start(program: &str, flags: impl Fn(String) -> Vec<String>) -> Self {
        let path = tools().join(program);
        assert!(path.exists(), "{} is not there: run tests/run setup", path.display());
        // Between the choice of the port and the server's start, somebody else may take it.
        for _ in 0..5 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
            let address = free.expect("a free port");
            let child = Command::new(&path)
                .args(flags(address.port().to_string()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .stdin(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{} does not start: {error}", path.display()));
            let mut server = Self { child, address };
            if server.answers() {
                return server;
            }
        }
        panic!("{} ends by itself", path.display());
    }

    /// Waits until it listens; `false` if it has ended.
    fn answers(&mut self) -> bool {
        let since = Instant::now();
        loop {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            assert!(since.elapsed() < PATIENCE, "a test server does not listen after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tools() -> PathBuf {
    match std::env::var_os("KILN_TEST_TOOLS") {
        Some(dir) => dir.into(),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools")),
    }
}

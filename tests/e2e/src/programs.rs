//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

use crate::server::Server;

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The `kiln` program: `KILN_BIN`, or what the same profile as this test has built.
pub fn kiln() -> PathBuf {
    built("KILN_BIN", "kiln", "cargo build")
}

/// The example that speaks gRPC: `TOP_WORDS_BIN`, or what the same profile as this test has built.
pub fn top_words() -> PathBuf {
    built("TOP_WORDS_BIN", "top-words", "cargo build -p top-words")
}

/// A service's own program, as the same profile as this test has built it.
pub fn service(name: &str) -> PathBuf {
    built(&format!("{}_BIN", name.replace('-', "_").to_uppercase()), name, "cargo build --workspace")
}

fn built(variable: &str, name: &str, how: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    // target/<profile>/deps/<this test>, or target/<profile>/<this program>
    let own = std::env::current_exe().unwrap();
    let dir = own.parent().unwrap();
    let path = if dir.ends_with("deps") { dir.parent().unwrap() } else { dir }.join(name);
    assert!(path.exists(), "{} is not there: run `{how}`, or `tests/run e2e`, which does", path.display());
    path
}

/// The Python of one of the environments that `tests/run` makes: `2017` or `today`.
pub fn python(environment: &str) -> PathBuf {
    let path = root().join(format!(".venv-{environment}/bin/python"));
    assert!(path.exists(), "{} is not there: run `tests/run setup`, which makes it", path.display());
    path
}

/// A command without the variables by which a developer's shell may point to a server of theirs.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let ours =
            name.to_str().is_some_and(|name| ["KILN_", "AZURE_", "OTEL_"].iter().any(|own| name.starts_with(own)));
        if ours {
            command.env_remove(name);
        }
    }
    // No server runs there.
    command.env("KILN_DATA", "/nonexistent/kiln").kill_on_drop(true);
    command
}

/// Runs a client program against `server`, with the variables of `kiln env`.
pub async fn run_client(server: &Server, program: &Path, arguments: &[&str]) -> Output {
    let output = command(program).args(arguments).envs(server.variables()).current_dir(root()).output().await.unwrap();
    println!("{}", text(&output));
    output
}

/// Runs `kiln` with `arguments` against `server`.
pub async fn run_kiln(server: &Server, arguments: &[&str]) -> Output {
    run_client(server, &kiln(), arguments).await
}

/// What a program printed, on both streams.
pub fn text(output: &Output) -> String {
    format!("{}{}({})", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr), output.status)
}

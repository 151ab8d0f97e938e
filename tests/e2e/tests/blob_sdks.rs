//! What people do with blobs, through the SDKs of three generations for Python and the one for JavaScript. The programs
//! are in `clients/blobs/`, and `checks.json` there has one list of checks for all of them.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kiln_e2e::programs::{command, python, root, text};
use kiln_e2e::server::Server;

async fn all_checks(program: &Path, client: &str, generation: &str) {
    let server = Server::start().await;
    let output = command(program)
        .arg(format!("tests/e2e/clients/blobs/{client}"))
        .arg(generation)
        .envs(server.variables())
        // Where `tests/run setup` puts the packages for JavaScript.
        .env("NODE_PATH", root().join(".tools/js-blobs/node_modules"))
        .current_dir(root())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), server.log_tail());
    let last = text(&output);
    assert!(last.contains(&format!("{generation}: ")) && last.contains(" checks, 0 problems"), "{last}");
    server.stop().await;
}

#[tokio::test]
async fn the_sdk_of_2017() {
    all_checks(&python("2017"), "legacy.py", "2017").await;
}

#[tokio::test]
async fn the_first_sdk_in_packages_by_service() {
    all_checks(&python("blobs-0.37"), "legacy.py", "0.37").await;
}

#[tokio::test]
async fn the_last_sdk_with_the_interface_of_2017() {
    all_checks(&python("blobs-2.1"), "legacy.py", "2.1").await;
}

#[tokio::test]
async fn the_sdk_of_today() {
    all_checks(&python("today"), "today.py", "today").await;
}

#[tokio::test]
async fn the_sdk_for_javascript() {
    all_checks(Path::new("node"), "blobs.mjs", "js").await;
}

//! `kiln env`: what other programs need, as shell exports.

use std::path::Path;

use crate::command_line::quote;
use crate::failure::{Failure, Outcome};
use crate::up::deployment::Deployment;
use crate::up::running::Running;

/// Names and values for the shell.
///
/// # Errors
/// If no server was ever started on the directory.
pub fn variables(data: &Path) -> Outcome<Vec<(&'static str, String)>> {
    let deployment = Deployment::read(data)?
        .ok_or_else(|| Failure::Usage(format!("{} has no deployment yet; start one with `kiln up`", data.display())))?;
    let (endpoint, blobs) = match Running::find(data) {
        Some(running) => (running.endpoint, running.blob_endpoint),
        // Not running: the ports will be the same again.
        None => (
            format!("http://127.0.0.1:{}", deployment.ports.gateway),
            format!("http://127.0.0.1:{}", deployment.ports.blob),
        ),
    };
    let Deployment { account, key1: key, .. } = deployment;
    let blob_endpoint = format!("{blobs}/{account}");
    Ok(of(account, key, endpoint, blob_endpoint))
}

/// Names and values for an account; `blob_endpoint` is its own.
pub fn of(account: String, key: String, endpoint: String, blob_endpoint: String) -> Vec<(&'static str, String)> {
    let protocol = if blob_endpoint.starts_with("https:") { "https" } else { "http" };
    let connection = format!(
        "DefaultEndpointsProtocol={protocol};AccountName={account};AccountKey={key};BlobEndpoint={blob_endpoint};"
    );
    vec![
        ("KILN_ENDPOINT", endpoint.clone()),
        ("KILN_ACCOUNT", account.clone()),
        ("KILN_ACCOUNT_KEY", key.clone()),
        ("AZURE_BATCH_ACCOUNT", account.clone()),
        ("AZURE_BATCH_ACCESS_KEY", key.clone()),
        ("AZURE_BATCH_ENDPOINT", endpoint),
        ("AZURE_STORAGE_CONNECTION_STRING", connection),
        ("AZURE_STORAGE_ACCOUNT", account),
        ("AZURE_STORAGE_KEY", key),
        ("AZURE_STORAGE_BLOB_ENDPOINT", blob_endpoint),
    ]
}

/// Prints them for the shell.
pub fn print(variables: Vec<(&'static str, String)>) {
    crate::output::text_block(format_args!("{}", exports(&variables)));
}

/// `kiln env`.
///
/// # Errors
/// As [`variables`].
pub fn command(data: &Path) -> Outcome {
    print(variables(data)?);
    Ok(())
}

fn exports(variables: &[(&str, String)]) -> String {
    variables.iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::deployment::Wanted;

    #[test]
    fn the_shell_gets_every_value_unchanged() {
        let values = [("A", "plain"), ("B", "with; semicolon=and 'quotes'"), ("C", "$(id) `id` \\ \"x\" ä"), ("D", "")];
        let list: Vec<(&str, String)> = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let script = format!("{}printf '%s|' \"$A\" \"$B\" \"$C\" \"$D\"", exports(&list));
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let expected: String = values.iter().map(|(_, value)| format!("{value}|")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn azure_programs_find_what_they_look_for() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(variables(dir.path()).unwrap_err().exit_code(), 2);
        let mut deployment = Deployment::create(Wanted::default()).unwrap();
        deployment.ports.gateway = 7450;
        deployment.ports.blob = 7451;
        deployment.write(dir.path()).unwrap();
        let found = variables(dir.path()).unwrap();
        let value =
            |name: &str| found.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone()).unwrap();
        assert_eq!(value("KILN_ENDPOINT"), "http://127.0.0.1:7450");
        assert_eq!(value("AZURE_STORAGE_BLOB_ENDPOINT"), "http://127.0.0.1:7451/kiln");
        let connection = value("AZURE_STORAGE_CONNECTION_STRING");
        assert!(connection.contains("AccountName=kiln;") && connection.contains(&deployment.key1));
    }
}

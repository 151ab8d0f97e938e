//! One module per resource: its subcommands, and how it is shown.

pub mod account;
pub mod app;
pub mod blob;
pub mod certs;
pub mod events;
pub mod job;
pub mod logs;
pub mod node;
pub mod node_join;
pub mod pool;
pub mod schedule;
pub mod status;
pub mod task;
pub mod watch;

use std::time::Duration;

use kiln_proto::common::v1::{EnvironmentSetting, FileEntry};
use tokio::io::AsyncWriteExt;
use tonic::Streaming;

use crate::failure::{Failure, Outcome};

/// How much of a list to show.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    /// Only what matches, for example: startswith(id,'a') and state eq 'active'
    #[arg(long, default_value = "", hide_default_value = true)]
    pub filter: String,
    /// At most this many
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Follows pages until there are `limit` rows or no more; says if there are more.
///
/// # Errors
/// The first error of `fetch`.
pub async fn pages<T, F, Fut>(limit: u32, mut fetch: F) -> Outcome<Vec<T>>
where
    F: FnMut(i32, String) -> Fut,
    Fut: Future<Output = Result<(Vec<T>, String), tonic::Status>>,
{
    let limit = limit as usize;
    let mut rows: Vec<T> = Vec::new();
    let mut token = String::new();
    loop {
        let size = i32::try_from((limit - rows.len()).min(1000)).unwrap_or(1000);
        let (page, next) = fetch(size, token).await?;
        rows.extend(page);
        token = next;
        if token.is_empty() {
            return Ok(rows);
        }
        if rows.len() >= limit {
            eprintln!("(there are more; raise --limit)");
            rows.truncate(limit);
            return Ok(rows);
        }
    }
}

/// `NAME=VALUE`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("has to be NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE` of an environment variable that users may set.
///
/// # Errors
/// What is wrong with it.
pub fn parse_env(text: &str) -> Result<(String, String), String> {
    let (name, value) = parse_pair(text)?;
    crate::run::reader::check_environment_name(&name)?;
    Ok((name, value))
}

/// `90s`, `1h30m`.
///
/// # Errors
/// What a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::run::reader::parse_duration(text).ok_or_else(|| "has to be a duration such as 90s, 15m or 1h30m".to_owned())
}

/// Pairs as settings of the API.
pub fn environment(pairs: Vec<(String, String)>) -> Vec<EnvironmentSetting> {
    pairs.into_iter().map(|(name, value)| EnvironmentSetting { name, value }).collect()
}

/// Row of a file in a listing.
pub fn file_row(file: &FileEntry) -> Vec<String> {
    let size = if file.is_directory { "dir".to_owned() } else { file.content_length.to_string() };
    vec![file.name.clone(), size, crate::output::text::time(file.last_modified.as_ref())]
}

/// Header of [`file_row`].
pub const FILE_HEADER: [&str; 3] = ["name", "bytes", "modified"];

/// Writes what a file stream brings to stdout as it comes. A reader that has
/// enough (`| head`) is no error.
///
/// # Errors
/// What the service said, or if stdout cannot be written.
pub async fn copy_to_stdout<M>(mut stream: Streaming<M>, data: impl Fn(M) -> Option<bytes::Bytes>) -> Outcome {
    let mut stdout = tokio::io::stdout();
    while let Some(message) = stream.message().await? {
        let Some(bytes) = data(message) else { continue };
        let written = async {
            stdout.write_all(&bytes).await?;
            stdout.flush().await
        };
        match written.await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A field of an answer that has to be there.
///
/// # Errors
/// If it is not.
pub fn present<T>(field: Option<T>, what: &str) -> Outcome<T> {
    field.ok_or_else(|| Failure::Service(kiln_error::Error::internal(format!("the answer has no {what}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_followed_up_to_the_limit() {
        let fetch = |size: i32, token: String| async move {
            let start: i32 = token.parse().unwrap_or(0);
            let size = size.min(3);
            let next = if start + size < 8 { (start + size).to_string() } else { String::new() };
            Ok(((start..(start + size).min(8)).collect::<Vec<i32>>(), next))
        };
        assert_eq!(pages(100, fetch).await.unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(pages(4, fetch).await.unwrap(), vec![0, 1, 2, 3]);
    }

    #[test]
    fn pairs_and_durations() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_pair("=b").is_err() && parse_pair("a").is_err());
        assert!(parse_env("AZ_BATCH_X=1").is_err());
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    }
}

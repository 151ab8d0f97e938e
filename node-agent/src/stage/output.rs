//! Output files are found and uploaded after a process has ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use kiln_proto::common::v1::{OutputFile, OutputFileUploadCondition};
use nix::libc;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use url::Url;

use super::listing;
use super::transfer::{Http, TransferError, without_query};
use super::upload::Target;
use crate::domain::failure::Failure;
use crate::domain::glob::Pattern;
use crate::domain::paths;

const PARALLEL_PER_TASK: usize = 4;
/// A pattern that means more files than this is a mistake.
const MAX_FILES: usize = 100_000;

/// Takes output files out.
#[derive(Debug)]
pub struct Output {
    /// Uploads files.
    pub http: Http,
    /// Bounds the transfers of the node.
    pub connections: Semaphore,
}

/// What an upload is about.
#[derive(Debug)]
pub struct Job<'a> {
    /// As the task says.
    pub files: &'a [OutputFile],
    /// How the process ended.
    pub exit_code: i32,
    /// Absolute; patterns are relative to it.
    pub working_dir: &'a Path,
    /// Receives the logs of the upload.
    pub task_dir: &'a Path,
    /// Nothing outside is uploaded.
    pub root_dir: &'a Path,
    /// For variables in patterns.
    pub environment: &'a BTreeMap<String, String>,
}

/// One file to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Upload {
    file: PathBuf,
    blob: String,
}

impl Output {
    /// Uploads what the conditions ask for.
    ///
    /// # Errors
    /// The first failure; the others are tried, too, and are in fileuploaderr.txt.
    pub async fn upload_all(&self, job: Job<'_>) -> Result<(), Failure> {
        if job.files.is_empty() {
            return Ok(());
        }
        let log = Log::create(job.task_dir).await?;
        let mut result = Ok(());
        for output in job.files.iter().filter(|output| is_due(output, job.exit_code)) {
            if let Err(failure) = self.upload(output, &job, &log).await {
                log.failed(&failure.to_string()).await;
                result = result.and(Err(failure));
            }
        }
        result
    }

    async fn upload(&self, output: &OutputFile, job: &Job<'_>, log: &Log) -> Result<(), Failure> {
        let container = Url::parse(&output.container_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
            let message = format!("output file {:?} has no valid container URL", output.file_pattern);
            Failure::user("FileUploadMiscError", message).with("FilePattern", &*output.file_pattern)
        })?;
        let pattern = expand(&output.file_pattern, job.environment);
        let (working_dir, root) = (job.working_dir.to_owned(), job.root_dir.to_owned());
        let destination = output.path.clone();
        let found = tokio::task::spawn_blocking(move || find(&pattern, &working_dir, &root, &destination))
            .await
            .map_err(|error| Failure::server("FileUploadMiscError", error.to_string()))?
            .map_err(|why| {
                Failure::user("FileUploadMiscError", format!("{:?}: {why}", output.file_pattern))
                    .with("FilePattern", &*output.file_pattern)
            })?;
        if found.is_empty() {
            log.done(&format!("{}: no file matches", output.file_pattern)).await;
        }
        futures::stream::iter(found)
            .map(|upload| self.upload_file(upload, &container, output, log))
            .buffer_unordered(PARALLEL_PER_TASK)
            .try_collect::<()>()
            .await
    }

    async fn upload_file(
        &self,
        upload: Upload,
        container: &Url,
        output: &OutputFile,
        log: &Log,
    ) -> Result<(), Failure> {
        // Never closed.
        let _connection = self.connections.acquire().await;
        let url = listing::blob_url(container, &upload.blob)
            .ok_or_else(|| Failure::user("FileUploadMiscError", "the container URL cannot have blobs"))?;
        let to =
            Target { http: &self.http, url: &url, headers: &output.upload_headers, connections: &self.connections };
        let bytes = to.send(&upload.file).await.map_err(|error| {
            let target = without_query(&url);
            upload_failure(&error, format!("{} to {target}: {error}", upload.file.display()))
                .with("FilePath", upload.file.display().to_string())
                .with("Destination", target.to_string())
        })?;
        log.done(&format!("{} -> {} ({bytes} bytes)", upload.file.display(), without_query(&url))).await;
        Ok(())
    }
}

fn is_due(output: &OutputFile, exit_code: i32) -> bool {
    match OutputFileUploadCondition::try_from(output.upload_condition) {
        Ok(OutputFileUploadCondition::TaskSuccess) => exit_code == 0,
        Ok(OutputFileUploadCondition::TaskFailure) => exit_code != 0,
        Ok(OutputFileUploadCondition::TaskCompletion | OutputFileUploadCondition::Unspecified) | Err(_) => true,
    }
}

fn upload_failure(error: &TransferError, message: String) -> Failure {
    match error {
        TransferError::NotFound(_) => Failure::user("FileUploadContainerNotFound", message),
        TransferError::Denied(_) => Failure::user("FileUploadAccessDenied", message),
        TransferError::Conflict(_) => Failure::user("FileUploadConflict", message),
        TransferError::TimedOut(_) => Failure::server("FileUploadTimedOut", message),
        TransferError::Changed
        | TransferError::NoRanges
        | TransferError::Local(_)
        | TransferError::DiskFull
        | TransferError::Other(_) => Failure::server("FileUploadMiscError", message),
    }
}

/// Replaces `$NAME` and `${NAME}` by the variables of the task; unknown ones
/// by nothing.
fn expand(pattern: &str, environment: &BTreeMap<String, String>) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut result = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, tail)) if name.chars().all(is_name) => (name, tail),
            _ => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        if name.is_empty() {
            result.push('$');
        } else if let Some(value) = environment.get(name) {
            result.push_str(value);
        }
        rest = tail;
    }
    result.push_str(rest);
    result
}

/// The files that `pattern` means and the blobs they become. Blocks.
fn find(pattern: &str, working_dir: &Path, root: &Path, destination: &str) -> Result<Vec<Upload>, String> {
    let pattern = Pattern::parse(pattern).map_err(|error| error.to_string())?;
    let root = root.canonicalize().map_err(|error| format!("the node root: {error}"))?;
    let mut base = if pattern.absolute { PathBuf::from("/") } else { working_dir.to_owned() };
    base.extend(&pattern.fixed);
    let outside = || "the pattern leads out of the node's directory".to_owned();
    let base = paths::normalise_absolute(&base).ok_or_else(outside)?;
    let inside = match base.canonicalize() {
        Ok(real) => real.starts_with(&root),
        Err(_) if base.starts_with(&root) => return Ok(Vec::new()),
        Err(_) => false,
    };
    if !inside {
        return Err(outside());
    }
    if !pattern.has_wildcard() {
        if !base.is_file() {
            return Ok(Vec::new());
        }
        let own_name = base.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let blob = if destination.is_empty() { own_name } else { destination.trim_start_matches('/').to_owned() };
        return Ok(vec![Upload { file: base, blob }]);
    }
    let mut found = Vec::new();
    walk(&base, &mut Vec::new(), &pattern, &root, &mut found)?;
    found.sort_unstable_by(|a: &Upload, b: &Upload| a.file.cmp(&b.file));
    let prefix = destination.trim_matches('/');
    if !prefix.is_empty() {
        for upload in &mut found {
            upload.blob = format!("{prefix}/{}", upload.blob);
        }
    }
    Ok(found)
}

fn walk(
    dir: &Path,
    names: &mut Vec<String>,
    pattern: &Pattern,
    root: &Path,
    found: &mut Vec<Upload>,
) -> Result<(), String> {
    // Depth is bounded by the length of paths, so the recursion is, too.
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", dir.display()))?;
        // Blob names are text.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        names.push(name);
        let parts: Vec<&str> = names.iter().map(String::as_str).collect();
        if kind.is_dir() {
            if pattern.may_match_below(&parts) {
                walk(&entry.path(), names, pattern, root, found)?;
            }
        } else if pattern.matches(&parts) && is_file_inside(&entry.path(), root) {
            if found.len() == MAX_FILES {
                return Err(format!("the pattern means more than {MAX_FILES} files"));
            }
            found.push(Upload { file: entry.path(), blob: parts.join("/") });
        }
        names.pop();
    }
    Ok(())
}

/// Links to files count if they stay inside.
fn is_file_inside(path: &Path, root: &Path) -> bool {
    path.canonicalize().is_ok_and(|real| real.starts_with(root) && real.is_file())
}

/// fileuploadout.txt and fileuploaderr.txt.
#[derive(Debug)]
struct Log {
    out: tokio::sync::Mutex<tokio::fs::File>,
    err: tokio::sync::Mutex<tokio::fs::File>,
}

impl Log {
    async fn create(task_dir: &Path) -> Result<Self, Failure> {
        let out = create_log(&task_dir.join("fileuploadout.txt")).await?;
        let err = create_log(&task_dir.join("fileuploaderr.txt")).await?;
        Ok(Self { out, err })
    }

    async fn done(&self, line: &str) {
        write_line(&self.out, line).await;
    }

    async fn failed(&self, line: &str) {
        write_line(&self.err, line).await;
    }
}

async fn create_log(path: &Path) -> Result<tokio::sync::Mutex<tokio::fs::File>, Failure> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
        .open(path)
        .await
        .map(tokio::sync::Mutex::new)
        .map_err(|error| Failure::server("FileUploadMiscError", format!("{}: {error}", path.display())))
}

async fn write_line(file: &tokio::sync::Mutex<tokio::fs::File>, line: &str) {
    let mut file = file.lock().await;
    let written = async {
        file.write_all(format!("{} {line}\n", kiln_time::Timestamp::now()).as_bytes()).await?;
        file.flush().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "the log of an upload could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_patterns() {
        let environment = BTreeMap::from([("A".to_owned(), "x".to_owned()), ("A_B".to_owned(), "y".to_owned())]);
        for (pattern, expected) in [
            ("$A/$A_B.txt", "x/y.txt"),
            ("${A}b", "xb"),
            ("$NONE/z", "/z"),
            ("a$", "a$"),
            ("${A", "${A"),
            ("$$A", "$x"),
        ] {
            assert_eq!(expand(pattern, &environment), expected, "{pattern}");
        }
    }

    #[test]
    fn files_and_blob_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let wd = root.join("workitems/j/job-1/t/wd");
        std::fs::create_dir_all(wd.join("out/deep")).unwrap();
        for file in ["a.txt", "b.csv", "out/c.txt", "out/deep/d.txt", ".hidden.txt", "../stdout.txt", "../stderr.txt"] {
            std::fs::write(wd.join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", wd.join("leak.txt")).unwrap();
        std::os::unix::fs::symlink("/etc", wd.join("etc")).unwrap();
        std::os::unix::fs::symlink(wd.join("out"), wd.join("loop")).unwrap();
        let blobs = |pattern: &str, destination: &str| -> Result<Vec<String>, String> {
            Ok(find(pattern, &wd, root, destination)?.into_iter().map(|upload| upload.blob).collect())
        };
        let ok = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(blobs("a.txt", ""), ok(&["a.txt"]));
        assert_eq!(blobs("a.txt", "results/first.txt"), ok(&["results/first.txt"]));
        assert_eq!(blobs("out/c.txt", ""), ok(&["c.txt"]));
        assert_eq!(blobs("*.txt", ""), ok(&["a.txt"]));
        assert_eq!(blobs("**/*.txt", "p/"), ok(&["p/a.txt", "p/out/c.txt", "p/out/deep/d.txt"]));
        assert_eq!(blobs("out/**", "p"), ok(&["p/c.txt", "p/deep/d.txt"]));
        assert_eq!(blobs("../std*.txt", "logs"), ok(&["logs/stderr.txt", "logs/stdout.txt"]));
        assert_eq!(blobs("none*", ""), ok(&[]));
        assert_eq!(blobs("none/at/all.txt", ""), ok(&[]));
        assert_eq!(blobs(&format!("{}/b.csv", wd.display()), ""), ok(&["b.csv"]));
        for outside in
            ["/etc/hostname", "/etc/*", "../../../../../../*", "etc/*", "leak.txt", "../../../../../../../../../x"]
        {
            assert!(blobs(outside, "").is_err(), "{outside}");
        }
    }

    #[test]
    fn conditions() {
        let due = |condition: OutputFileUploadCondition, code| {
            is_due(&OutputFile { upload_condition: condition as i32, ..OutputFile::default() }, code)
        };
        use OutputFileUploadCondition as C;
        assert!(due(C::TaskSuccess, 0) && !due(C::TaskSuccess, 1));
        assert!(!due(C::TaskFailure, 0) && due(C::TaskFailure, 1));
        assert!(due(C::TaskCompletion, 0) && due(C::Unspecified, 1));
    }
}

//! Checkpoints out of the writer's way.
//!
//! What is committed is in the write-ahead log; a checkpoint copies it into the
//! database file, and when all is copied the log begins anew. SQLite does that
//! inside of a commit, whose callers then wait for a thousand pages and a second
//! flush. Here a thread of its own copies while the writer goes on. It can never
//! have copied all as long as somebody writes, so the writer itself copies the
//! few pages that are left when the log has become long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;

/// Pages that may wait in the log before they are copied.
const COPY: i64 = 2_000;
/// Pages of a log that should begin anew.
const LONG: i64 = 8_000;
/// Pages of a log that has become so long that the writer copies, whatever is
/// left: nothing else bounds it when readers and writers never pause.
const TOO_LONG: i64 = 65_536;

/// The writer's end.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    committed: SyncSender<()>,
    finish: Arc<AtomicBool>,
}

impl Checkpoints {
    /// Starts the thread, which ends with the returned value. `connection` is
    /// its own, as durable as the writer's.
    pub(crate) fn start(name: &str, connection: Connection) -> std::io::Result<Self> {
        // One is enough: it says "look".
        let (committed, news) = sync_channel(1);
        let finish = Arc::new(AtomicBool::new(false));
        let asked = finish.clone();
        std::thread::Builder::new().name(format!("copy-{name}")).spawn(move || copy(&connection, &news, &asked))?;
        Ok(Self { committed, finish })
    }

    /// To be called by the writer after each commit.
    pub(crate) fn after_commit(&self, writer: &Connection) {
        // Full means that the thread has yet to look; gone, that it has failed,
        // which it has told.
        let _ = self.committed.try_send(());
        if self.finish.swap(false, Ordering::AcqRel)
            && let Err(error) = checkpoint(writer, "PASSIVE")
        {
            tracing::warn!(%error, "the write-ahead log could not be finished; it grows until that works");
        }
    }
}

fn copy(connection: &Connection, news: &Receiver<()>, finish: &AtomicBool) {
    while news.recv().is_ok() {
        let copied = checkpoint(connection, "NOOP").and_then(|(length, copied)| {
            if length - copied < COPY && length < TOO_LONG {
                return Ok((length, copied));
            }
            checkpoint(connection, "PASSIVE")
        });
        match copied {
            Ok((length, copied)) if length >= TOO_LONG || (length >= LONG && length - copied < COPY) => {
                finish.store(true, Ordering::Release);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "committed pages could not be copied into the database; they stay in its log");
            }
        }
    }
}

/// Pages in the log, and how many of them are copied.
fn checkpoint(connection: &Connection, mode: &str) -> Result<(i64, i64), rusqlite::Error> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_always_written_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let open = || {
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "journal_mode", "WAL").unwrap();
            connection.pragma_update(None, "synchronous", "OFF").unwrap();
            connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
            connection
        };
        let writer = open();
        writer.execute_batch("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB NOT NULL)").unwrap();
        let checkpoints = Checkpoints::start("t", open()).unwrap();
        let log = || std::fs::metadata(dir.path().join("t.db-wal")).unwrap().len();
        let mut written = 0;
        // As long as the log would be if it never began anew, and then once more
        // around: it stays below what was written.
        while written < 3 * LONG {
            for _ in 0..16 {
                writer.execute("INSERT INTO t (v) VALUES (zeroblob(65536))", []).unwrap();
                written += 16;
            }
            checkpoints.after_commit(&writer);
            let (length, _) = checkpoint(&writer, "NOOP").unwrap();
            assert!(length < TOO_LONG + 1000, "{length} pages");
        }
        // The thread gets round to it at last.
        loop {
            checkpoints.after_commit(&writer);
            writer.execute("INSERT INTO t (v) VALUES (x'00')", []).unwrap();
            if checkpoint(&writer, "NOOP").unwrap().0 < LONG {
                break;
            }
            std::thread::yield_now();
        }
        assert!(log() > 0);
        let rows: i64 = open().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert!(rows >= written / 16);
    }
}

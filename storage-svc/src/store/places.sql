-- Bytes of small blobs may be encrypted with the key of this id.
ALTER TABLE small ADD COLUMN key TEXT;

-- Keys that bytes may be encrypted with, and what tells another key of the same
-- id apart; not the keys.
CREATE TABLE encryption_keys (
    id TEXT PRIMARY KEY,
    proof TEXT NOT NULL
) WITHOUT ROWID;

-- Uploads in parts to a remote store that were begun; time is when they were
-- last known to go on.
CREATE TABLE uploads (
    object TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX uploads_time ON uploads (time);

-- The catalogue's own name, which its objects bear; one row.
CREATE TABLE identity (
    one INTEGER PRIMARY KEY,
    name TEXT NOT NULL
);

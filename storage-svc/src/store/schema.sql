CREATE TABLE accounts (
    key TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    key1 TEXT NOT NULL,
    key2 TEXT NOT NULL
) WITHOUT ROWID;

-- A new container of an old name has a new id, so that the blobs of the old one
-- can be removed at leisure.
CREATE TABLE containers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    etag TEXT NOT NULL,
    modified INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    public_access INTEGER NOT NULL,
    policies TEXT NOT NULL,
    UNIQUE (account, name)
);

-- Deleted containers that still have blobs.
CREATE TABLE doomed (
    container INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL
);

-- A write of new content makes a new row (and id).
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    container INTEGER NOT NULL,
    name TEXT NOT NULL,
    etag TEXT NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    length INTEGER NOT NULL,
    properties TEXT NOT NULL,
    metadata TEXT NOT NULL,
    copy TEXT,
    UNIQUE (container, name)
);

-- Bytes of small blobs.
CREATE TABLE small (
    blob INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
);

-- Objects of the other ones, in order.
CREATE TABLE extents (
    blob INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    block TEXT,
    object TEXT NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (blob, seq)
) WITHOUT ROWID;
CREATE INDEX extents_object ON extents (object);

-- Blobs with uncommitted blocks: how many, how long their ids are decoded, when
-- the last one came.
CREATE TABLE staged (
    container INTEGER NOT NULL,
    blob TEXT NOT NULL,
    count INTEGER NOT NULL,
    id_length INTEGER NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (container, blob)
) WITHOUT ROWID;
CREATE INDEX staged_time ON staged (time);

CREATE TABLE blocks (
    container INTEGER NOT NULL,
    blob TEXT NOT NULL,
    block TEXT NOT NULL,
    object TEXT NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (container, blob, block)
) WITHOUT ROWID;
CREATE INDEX blocks_object ON blocks (object);

-- Objects without a row, whose bytes are still there.
CREATE TABLE garbage (
    object TEXT PRIMARY KEY,
    time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX garbage_time ON garbage (time);

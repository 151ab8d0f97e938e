-- Append blobs: how often something was added (NULL: a block blob), and how many of these pieces, of how many bytes,
-- are still in the catalogue.
ALTER TABLE blobs ADD COLUMN appended INTEGER;
ALTER TABLE blobs ADD COLUMN loose INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN loose_bytes INTEGER NOT NULL DEFAULT 0;
-- JSON, if somebody chose one.
ALTER TABLE blobs ADD COLUMN tier TEXT;

-- Small pieces of append blobs. Their places are in one order with those of the blob's extents.
CREATE TABLE pieces (
    blob INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (blob, seq)
);

-- What blobs were at a moment. The content is that of a row of blobs, which may be gone: small, extents and pieces stay
-- while a snapshot needs them.
CREATE TABLE snapshots (
    container INTEGER NOT NULL,
    name TEXT NOT NULL,
    snapshot INTEGER NOT NULL,
    content INTEGER NOT NULL,
    etag TEXT NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    length INTEGER NOT NULL,
    properties TEXT NOT NULL,
    metadata TEXT NOT NULL,
    copy TEXT,
    appended INTEGER,
    tier TEXT,
    PRIMARY KEY (container, name, snapshot)
);
CREATE INDEX snapshots_content ON snapshots (content);

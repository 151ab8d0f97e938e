-- The same as runs.sql. What that does with old events is left out: on PostgreSQL
-- this step has always come together with the one before it.
ALTER TABLE log ADD COLUMN last INTEGER NOT NULL DEFAULT 0;

CREATE TABLE seen (
    source INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (source, first)
) WITHOUT ROWID;

CREATE TABLE runs (
    account TEXT NOT NULL,
    topic TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (account, topic, first)
) WITHOUT ROWID;
CREATE INDEX runs_age ON runs (last);

DROP TABLE events;
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    account TEXT NOT NULL,
    subject TEXT NOT NULL,
    type TEXT NOT NULL,
    time INTEGER NOT NULL,
    event BLOB NOT NULL
);
CREATE INDEX events_subject ON events (account, subject, position);

-- The event log. Positions are given in the order of commits by the one writer,
-- so a reader that has seen position p will never find a smaller one later.
-- AUTOINCREMENT: a position is not used again after its event was deleted.
CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    account TEXT NOT NULL,
    subject TEXT NOT NULL,
    topic TEXT NOT NULL,
    type TEXT NOT NULL,
    time INTEGER NOT NULL,
    event BLOB NOT NULL,
    UNIQUE (source, sequence)
);
-- Watchers read one topic in order of positions.
CREATE INDEX events_topic ON events (account, topic, position);
-- Timelines read the events of one task together; lists look for prefixes.
CREATE INDEX events_subject ON events (account, subject, position);

-- Which stores announce events. `contiguous`: no event up to this sequence is
-- missing. `newest`: the highest seen. `gap_since`: since when they differ.
-- `forgotten`: highest sequence that retention has deleted; repetitions of
-- such events are not stored again.
CREATE TABLE sources (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    contiguous INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    gap_since INTEGER,
    forgotten INTEGER NOT NULL DEFAULT 0
);

-- Sums of what events change, per second, minute and hour.
CREATE TABLE counters (
    account TEXT NOT NULL,
    scope TEXT NOT NULL,
    width INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    counter TEXT NOT NULL,
    delta INTEGER NOT NULL,
    PRIMARY KEY (account, scope, width, bucket, counter)
) WITHOUT ROWID;
CREATE INDEX counters_age ON counters (width, bucket);

-- One row. `id` is part of every cursor: a cursor of a log that was lost is
-- recognised. `floor`: everything up to this position was deleted.
CREATE TABLE log (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    events INTEGER NOT NULL,
    floor INTEGER NOT NULL
);

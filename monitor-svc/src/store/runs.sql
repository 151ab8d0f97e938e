-- One tree for the events and one for their subjects. What the others told
-- follows from few rows: sequences come without holes, and events of a topic
-- together.
ALTER TABLE log ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
UPDATE log SET last = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0);

-- Which events were stored, also those that retention has deleted: all of a
-- source from `first` to `last`. Ranges do not touch each other.
CREATE TABLE seen (
    source INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (source, first)
) WITHOUT ROWID;
INSERT INTO seen SELECT source, min(sequence), max(sequence) FROM
    (SELECT source, sequence, sequence - row_number() OVER (PARTITION BY source ORDER BY sequence) AS island FROM events)
    GROUP BY source, island;

-- Where the events of a topic are: positions from `first` to `last`, among not
-- too many of others.
CREATE TABLE runs (
    account TEXT NOT NULL,
    topic TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (account, topic, first)
) WITHOUT ROWID;
CREATE INDEX runs_age ON runs (last);
INSERT INTO runs SELECT account, topic, min(position), max(position) FROM
    (SELECT account, topic, position, position - row_number() OVER (PARTITION BY account, topic ORDER BY position) AS island
     FROM events) GROUP BY account, topic, island;

-- Positions are given by `log.last`, so that none is used again.
CREATE TABLE new_events (
    position INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    account TEXT NOT NULL,
    subject TEXT NOT NULL,
    type TEXT NOT NULL,
    time INTEGER NOT NULL,
    event BLOB NOT NULL
);
INSERT INTO new_events SELECT position, source, sequence, account, subject, type, time, event FROM events;
DROP TABLE events;
ALTER TABLE new_events RENAME TO events;
-- Timelines read the events of one task together; lists look for prefixes.
CREATE INDEX events_subject ON events (account, subject, position);

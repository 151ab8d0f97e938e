-- Records are JSON in the words of domain/; what no rule looks into is beside
-- them as bytes. Keys are the lower-case forms of ids.
CREATE TABLE pools (
    account TEXT NOT NULL,
    pool TEXT NOT NULL,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL,
    settings BLOB NOT NULL,
    PRIMARY KEY (account, pool)
) WITHOUT ROWID;

CREATE TABLE nodes (
    account TEXT NOT NULL,
    pool TEXT NOT NULL,
    node TEXT NOT NULL,
    revision INTEGER NOT NULL,
    dedicated INTEGER NOT NULL,
    state TEXT NOT NULL,
    record TEXT NOT NULL,
    report BLOB NOT NULL,
    start_task BLOB NOT NULL,
    PRIMARY KEY (account, pool, node),
    FOREIGN KEY (account, pool) REFERENCES pools (account, pool)
) WITHOUT ROWID;

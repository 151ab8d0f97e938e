-- Which replica schedules a pool. The epoch goes up with every claim, so the
-- writes of a former owner are told from those of the present one.
CREATE TABLE pool_leases (
    account TEXT NOT NULL,
    pool_key TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    -- A replica: one life of a process.
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    -- By the clock of the database.
    expires INTEGER NOT NULL,
    PRIMARY KEY (account, pool_key)
) WITHOUT ROWID;
CREATE INDEX pool_leases_of_owner ON pool_leases (owner);

-- Replicas that live, so that each knows its share of the pools.
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    endpoint TEXT NOT NULL,
    expires INTEGER NOT NULL
) WITHOUT ROWID;

-- What clients changed through a replica that may not be the owner of the pool,
-- for the one that is. Written with the change itself.
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    replica TEXT NOT NULL,
    account TEXT NOT NULL,
    -- NULL: more than one pool.
    pool_key TEXT,
    -- See sql/changes.rs.
    kind INTEGER NOT NULL,
    job INTEGER NOT NULL,
    first_task INTEGER NOT NULL,
    last_task INTEGER NOT NULL,
    task_key TEXT NOT NULL
);

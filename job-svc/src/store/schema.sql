-- Keys are lower case; times are microseconds since the Unix epoch.

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    job_key TEXT NOT NULL,
    job_id TEXT NOT NULL,
    pool_key TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    -- 6 is completed; the others are explained in codec.rs.
    state INTEGER NOT NULL,
    -- Performs the job actions of exit conditions.
    exit_actions INTEGER NOT NULL,
    version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    life BLOB NOT NULL,
    spec BLOB NOT NULL,
    UNIQUE (account, job_key)
);
CREATE INDEX jobs_of_pool ON jobs (account, pool_key) WHERE state <> 6;

-- Changed in the transaction that changes the tasks, so always exact.
CREATE TABLE counts (
    job INTEGER PRIMARY KEY,
    active INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    active_slots INTEGER NOT NULL DEFAULT 0,
    running_slots INTEGER NOT NULL DEFAULT 0,
    succeeded_slots INTEGER NOT NULL DEFAULT 0,
    failed_slots INTEGER NOT NULL DEFAULT 0
);

-- The part of a task that changes, apart from its spec, so that a step of a
-- task rewrites a hundred bytes and not the whole spec.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    task_key TEXT NOT NULL,
    -- As its creator wrote it, if that is not the key.
    task_id TEXT,
    -- 1 while it waits or runs, else NULL.
    open INTEGER,
    phase INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    slots INTEGER NOT NULL,
    max_retries INTEGER NOT NULL,
    affinity INTEGER NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE UNIQUE INDEX tasks_by_key ON tasks (job, task_key);
-- What the scheduler loads when it starts.
CREATE INDEX tasks_open ON tasks (job, id) WHERE open = 1;

CREATE TABLE task_specs (
    id INTEGER PRIMARY KEY,
    spec BLOB NOT NULL,
    traceparent TEXT NOT NULL
);

-- Attempts before the latest; that one is in the task itself.
CREATE TABLE attempts (
    task INTEGER NOT NULL,
    number INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (task, number)
) WITHOUT ROWID;

-- Row ids of tasks are never used twice: late messages may still name old ones.
CREATE TABLE next_task (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL);
INSERT INTO next_task VALUES (1, 1);

-- Job schedules; their jobs are named <schedule>:job-<n>, so the jobs of one
-- are a range of keys.
CREATE TABLE job_schedules (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    schedule_key TEXT NOT NULL,
    schedule_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    life BLOB NOT NULL,
    spec BLOB NOT NULL,
    -- When to look whether something is due; NULL when only a change of the
    -- schedule or the end of its job can be a reason.
    look_at INTEGER,
    UNIQUE (account, schedule_key)
);
CREATE INDEX job_schedules_due ON job_schedules (look_at) WHERE look_at IS NOT NULL;

-- Pools that jobs and schedules bring along, until pool-svc has answered that
-- their owner has ended.
CREATE TABLE auto_pools (
    account TEXT NOT NULL,
    pool_key TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    -- The job it was made for, and the schedule if it is the schedule's pool.
    job_id TEXT NOT NULL,
    schedule_id TEXT,
    keep_alive INTEGER NOT NULL,
    -- An encoded kiln.job.v1.AutoPool.
    spec BLOB NOT NULL,
    -- Its owner has ended.
    over INTEGER NOT NULL,
    -- When to announce it again; NULL: it was answered.
    announce_at INTEGER,
    tries INTEGER NOT NULL,
    PRIMARY KEY (account, pool_key)
) WITHOUT ROWID;
CREATE INDEX auto_pools_unanswered ON auto_pools (announce_at) WHERE announce_at IS NOT NULL;

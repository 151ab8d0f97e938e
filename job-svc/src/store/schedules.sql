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

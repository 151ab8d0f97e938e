-- Jobs in which tasks wait for others have, beside each task, what those need to
-- know of it. Other jobs have nothing here.
ALTER TABLE jobs ADD COLUMN dependencies INTEGER NOT NULL DEFAULT 0;

-- Tasks as parents. A satisfied one stays when its task is deleted.
CREATE TABLE parents (
    job INTEGER NOT NULL,
    task_key TEXT NOT NULL,
    task INTEGER NOT NULL,
    -- If its id is an integer: ranges know it by that.
    number INTEGER,
    -- 0 open, 1 satisfied, 2 blocks.
    state INTEGER NOT NULL,
    PRIMARY KEY (job, task_key)
) WITHOUT ROWID;
CREATE INDEX parents_by_number ON parents (job, number, state) WHERE number IS NOT NULL;

-- What tasks wait for, until they have completed.
CREATE TABLE dependants (
    job INTEGER NOT NULL,
    task INTEGER NOT NULL,
    depends BLOB NOT NULL,
    PRIMARY KEY (job, task)
) WITHOUT ROWID;

-- Preparation and release of a job on one node; kept also when the node is gone.
CREATE TABLE job_nodes (
    job INTEGER NOT NULL,
    node_key TEXT NOT NULL,
    pool_key TEXT NOT NULL,
    node_id TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    -- Life of the agent that said the latest about the preparation.
    incarnation TEXT NOT NULL,
    -- Life of the agent in which it failed while tasks waited for it.
    barred TEXT,
    -- A task of the job has begun there.
    ran INTEGER NOT NULL,
    -- The latest word about each, as the agent said it.
    preparation BLOB,
    release BLOB,
    PRIMARY KEY (job, node_key, pool_key)
) WITHOUT ROWID;

-- Ids that tasks of the job cannot have.
ALTER TABLE jobs ADD COLUMN preparation_key TEXT;
ALTER TABLE jobs ADD COLUMN release_key TEXT;

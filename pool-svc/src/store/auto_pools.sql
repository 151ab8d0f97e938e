-- Pools that belong to jobs and schedules; also of pools that are gone or were
-- never made, so that a late announcement does not make them again.
CREATE TABLE auto_pools (
    account TEXT NOT NULL,
    pool TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (account, pool)
) WITHOUT ROWID;
CREATE INDEX auto_pools_over ON auto_pools (since) WHERE state <> 'made';

CREATE TABLE accounts (
    -- the name in lower case
    account TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    key1 TEXT NOT NULL,
    key2 TEXT NOT NULL,
    storage_account TEXT NOT NULL
) WITHOUT ROWID;

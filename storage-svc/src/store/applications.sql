-- Ids and versions are kept under their lower-case forms.
CREATE TABLE applications (
    account TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    allow_updates INTEGER NOT NULL,
    default_version TEXT,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) WITHOUT ROWID;

-- Versions of applications; content (JSON) and pending name blobs of the
-- account's container of packages.
CREATE TABLE packages (
    account TEXT NOT NULL,
    application TEXT NOT NULL,
    key TEXT NOT NULL,
    version TEXT NOT NULL,
    content TEXT,
    pending TEXT,
    created INTEGER NOT NULL,
    PRIMARY KEY (account, application, key)
) WITHOUT ROWID;

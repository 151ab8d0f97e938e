-- What a task needs beside slots, and how it wants to be placed; NULL for most.
ALTER TABLE tasks ADD COLUMN needs BLOB;

-- Instances of multi-instance tasks in their latest attempt, the primary (0)
-- among them.
CREATE TABLE subtasks (
    task INTEGER NOT NULL,
    instance INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (task, instance)
) WITHOUT ROWID;

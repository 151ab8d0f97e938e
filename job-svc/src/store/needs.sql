-- What a task needs beside slots, and how it wants to be placed; NULL for most.
ALTER TABLE tasks ADD COLUMN needs BLOB;

-- The replica that serves, where the others find it. A hint: who serves is known
-- by the turn.
CREATE TABLE serving (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    replica TEXT NOT NULL,
    endpoint TEXT NOT NULL
);

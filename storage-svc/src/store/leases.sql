-- Leases, as JSON; absent: never leased, or given back.
ALTER TABLE containers ADD COLUMN lease TEXT;
ALTER TABLE blobs ADD COLUMN lease TEXT;

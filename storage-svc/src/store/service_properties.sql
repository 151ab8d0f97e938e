-- Properties of the blob service, as JSON; absent: never set.
ALTER TABLE accounts ADD COLUMN properties TEXT;

-- +goose Up

-- A row lives for the milliseconds that its delivery takes: each index that it stands in costs twice. The primary key now
-- finds a registration's rows too.
ALTER TABLE outbox DROP CONSTRAINT outbox_pkey;
ALTER TABLE outbox ADD PRIMARY KEY (registration_id, hub);
DROP INDEX outbox_registration;

-- A registration is changed once as soon as it was made: with room beside it, no index hears of that.
ALTER TABLE registration SET (fillfactor = 60);

-- An intent that ends is found by its id in the index of the open ones, which is small; by their time it took a look at all.
-- Updates of devices find room on the page of the row, so that the indexes stay as they are (HOT).
--
-- +goose Up
DROP INDEX intents_open;
CREATE INDEX intents_open ON intents (id) WHERE state = 'open';
ALTER TABLE devices SET (fillfactor = 60);

-- +goose Down
SELECT 1;

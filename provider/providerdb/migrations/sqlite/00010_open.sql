-- What changes is for PostgreSQL alone.
--
-- +goose Up
SELECT 1;

-- +goose Down
SELECT 1;

-- The credentials of registration authorities are found among all certificates.
--
-- +goose Up
CREATE INDEX certificates_registrars ON certificates (account, issued) WHERE profile = 'registration-authority';

-- +goose Down
SELECT 1;

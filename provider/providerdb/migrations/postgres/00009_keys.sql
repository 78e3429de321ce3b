-- Certificates are found by their serial numbers, which ascend with time. A digest is no key: it is random, so that each row
-- would change an index page of its own. Who looks for one knows the serial number or the device besides.
--
-- +goose Up
ALTER TABLE certificates DROP CONSTRAINT certificates_pkey;
ALTER TABLE certificates DROP CONSTRAINT certificates_serial_key;
ALTER TABLE certificates ADD PRIMARY KEY (serial);

-- +goose Down
SELECT 1;

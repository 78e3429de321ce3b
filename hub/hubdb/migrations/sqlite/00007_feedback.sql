-- +goose Up
-- What the sender of a message wants to hear of: 1 that the device took it, 2 that it did not (hub.Ack).
ALTER TABLE c2d ADD COLUMN ack INTEGER NOT NULL DEFAULT 0;
UPDATE c2d SET ack = CASE WHEN '&' || properties || '&' LIKE '%&iothub-ack=positive&%' THEN 1
    WHEN '&' || properties || '&' LIKE '%&iothub-ack=negative&%' THEN 2 ELSE 3 END
    WHERE '&' || properties || '&' LIKE '%&iothub-ack=positive&%' OR '&' || properties || '&' LIKE '%&iothub-ack=negative&%' OR '&' || properties || '&' LIKE '%&iothub-ack=full&%';
-- Messages whose end by expiry somebody waits for.
CREATE INDEX c2d_awaited ON c2d (hub, expires) WHERE ack >= 2;

-- What became of messages, until the sender has taken it.
CREATE TABLE feedback (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    hub          INTEGER NOT NULL,
    device       TEXT    NOT NULL,
    generation   TEXT    NOT NULL,
    message      TEXT    NOT NULL, -- its id; may be ''
    outcome      INTEGER NOT NULL, -- hub.Outcome
    at           INTEGER NOT NULL, -- when it happened
    created      INTEGER NOT NULL, -- when this was written
    lock         TEXT    NOT NULL, -- who has it now; '' nobody
    locked_until INTEGER NOT NULL,
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX feedback_order ON feedback (hub, created, seq);
CREATE INDEX feedback_device ON feedback (hub, device, seq);
CREATE INDEX feedback_lock ON feedback (lock) WHERE lock <> '';

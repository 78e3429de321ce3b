-- +goose Up
-- What the sender of a message wants to hear of: 1 that the device took it, 2 that it did not (hub.Ack).
ALTER TABLE c2d ADD COLUMN ack BIGINT NOT NULL DEFAULT 0;
UPDATE c2d SET ack = CASE WHEN '&' || properties || '&' LIKE '%&iothub-ack=positive&%' THEN 1
    WHEN '&' || properties || '&' LIKE '%&iothub-ack=negative&%' THEN 2 ELSE 3 END
    WHERE '&' || properties || '&' LIKE '%&iothub-ack=positive&%' OR '&' || properties || '&' LIKE '%&iothub-ack=negative&%' OR '&' || properties || '&' LIKE '%&iothub-ack=full&%';
-- Messages whose end by expiry somebody waits for.
CREATE INDEX c2d_awaited ON c2d (hub, expires) WHERE ack >= 2;

-- What became of messages, until the sender has taken it.
CREATE TABLE feedback (
    seq          BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    hub          BIGINT NOT NULL,
    device       TEXT COLLATE "C" NOT NULL,
    generation   TEXT    NOT NULL,
    message      TEXT    NOT NULL, -- its id; may be ''
    outcome      BIGINT NOT NULL, -- hub.Outcome
    at           BIGINT NOT NULL, -- when it happened
    created      BIGINT NOT NULL, -- when this was written
    lock         TEXT COLLATE "C" NOT NULL, -- who has it now; '' nobody
    locked_until BIGINT NOT NULL,
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) WITH (fillfactor = 70);
CREATE INDEX feedback_order ON feedback (hub, created, seq);
CREATE INDEX feedback_device ON feedback (hub, device, seq);
CREATE INDEX feedback_lock ON feedback (lock) WHERE lock <> '';

package sqldb

import (
	"context"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
)

// listenRound is how often a listener looks who else listens.
const listenRound = 5 * time.Second

// listenerLock is the class of the advisory locks by which listeners know of each other; the second number is the channel's.
const listenerLock = 0x6372646c

// Listener is told what processes over one database say to each other. Its functions are called by one goroutine.
type Listener struct {
	Heard  func(text string) // what somebody said, which is not empty, this process too, in the same order at each listener
	Others func(any bool)    // whether other processes listen; told at the beginning and when it changes, a moment late
	Lost   func()            // something may have been missed: the connection was lost
}

// Listen calls l with what Say says on a channel (a-z 0-9 _), until ctx ends. On SQLite, which has one process, there is nothing
// to hear. While the database is not reached it tries again.
func (db *DB) Listen(ctx context.Context, channel string, l Listener) error {
	if !schemaName.MatchString(channel) {
		return cradle.Errorf(cradle.Invalid, "channel %q: use a-z, 0-9 and '_'", channel)
	}
	if db.engine == SQLite {
		<-ctx.Done()
		return nil
	}
	for again := false; ; again = true {
		_ = db.listen(ctx, channel, l, again) // those who use the store say that it is away
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// listen is Listen over one connection.
func (db *DB) listen(ctx context.Context, channel string, l Listener, again bool) error {
	c, err := db.connect(ctx)
	if err != nil {
		return err
	}
	defer c.discard()
	if _, err := c.pg.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	if _, err := c.pg.Exec(ctx, `SELECT pg_advisory_lock_shared($1, hashtext($2))`, int32(listenerLock), channel); err != nil {
		return err
	}
	if _, err := c.pg.Exec(ctx, `SELECT pg_notify($1, '')`, channel); err != nil { // says that we listen
		return err
	}
	if again {
		l.Lost()
	}
	for first, had := true, false; ; first = false {
		var others bool
		err := c.pg.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND classid::bigint = $1 AND objid::bigint = hashtext($2)::bigint & 4294967295)`, int64(listenerLock), channel).Scan(&others)
		if err != nil {
			return err
		}
		if first || others != had {
			l.Others(others)
		}
		had = others
		for round, cancel := context.WithTimeout(ctx, listenRound); ; {
			n, err := c.pg.WaitForNotification(round)
			if err == nil && n.Payload != "" {
				l.Heard(n.Payload)
				continue
			}
			cancel()
			if err == nil { // somebody listens now
				break
			}
			if ctx.Err() != nil || c.pg.IsClosed() || !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			break
		}
	}
}

// MaxSaid bounds one text, in bytes; PostgreSQL's own bound is 8000.
const MaxSaid = 7500

// Say tells texts, none of them empty, to who listens now; nothing is kept for others. On SQLite nobody does.
func (db *DB) Say(ctx context.Context, channel string, texts ...string) error {
	if db.engine == SQLite || len(texts) == 0 {
		return nil
	}
	return db.Update(ctx, func(_ context.Context, tx *Tx) error {
		for _, s := range texts {
			if err := tx.Queue(`SELECT pg_notify(?, ?)`, channel, s); err != nil {
				return err
			}
		}
		return nil
	})
}

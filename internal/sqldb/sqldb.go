// Package sqldb opens a store on SQLite or PostgreSQL and runs transactions on it the same way on both.
//
// Update is the only way to write. Concurrent Updates share one commit (group commit): a writer
// goroutine runs the functions that are waiting, one after the other, in one transaction, takes in
// those that arrive meanwhile, commits once, and then answers all of them. A function that fails
// costs nobody else: its batch is rolled back and run again without it, and the function itself
// is run once more alone, so its answer never rests on somebody's uncommitted rows.
//
// # Engines
//
// SQLite (modernc.org/sqlite, its library called directly): WAL, synchronous=FULL, foreign keys on, one writer, a pool of
// readers. Prepared statements are kept per connection.
//
// PostgreSQL (pgx): a few writers, each with its own connection and its own batches, so up to
// that many transactions of one process run in parallel, and those of other replicas besides. All
// Updates with the same key (UpdateKey) run on the same writer, one after the other; Update is
// UpdateKey with the empty key. What that means for row locks:
//
//   - A lock that one function takes is held until its whole batch is committed. Give UpdateKey
//     the thing whose row everybody locks (the log, the account): then batches of this
//     process never wait for each other, only for other replicas.
//   - Each statement whose result is asked for is a round trip, which costs both sides about as much as the
//     statement. Functions of a batch that are about different things (UpdateApart) run abreast, as coroutines:
//     what all of them ask is sent at once, in their order, and then each goes on with its answer. What several of
//     them ask of the same Many is one statement.
//   - Look-ups of rows by their keys (Find) share a connection of their own, whose backend is warm; those that come while
//     it is in use are one round trip. Listings (Read, View) have up to eight others.
//   - Writers find rows by keys: they plan a statement once, for whatever size a table will have, and may not scan one.
//   - Batches of several replicas may lock rows in different orders. PostgreSQL then ends one
//     of them (deadlock, after its deadlock_timeout); the batch is run again, at last each
//     function alone, a bounded number of times; after that the answer is Busy.
//   - Transactions are SERIALIZABLE by default: a function may read, decide and write as if it ran alone, as
//     it does on SQLite. What PostgreSQL refuses is run again. Config.ReadCommitted trades that for
//     fewer retries: then every row that a decision rests on is read with FOR UPDATE (or FOR
//     SHARE), or written by an UPDATE … WHERE that repeats the condition.
//
// # Statements
//
// Placeholders are '?' on both engines; a literal question mark does not fit into a statement. A
// trailing FOR UPDATE or FOR SHARE is left out on SQLite, whose writer is alone anyway. Close rows
// before the next statement. After a statement failed, the transaction is lost on both engines: return.
// NULL and an empty blob are told apart by IS NULL alone: the SQLite driver reads both as nil.
package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cradle-iot/cradle"
)

// Engine is the kind of database.
type Engine int

// The engines.
const (
	SQLite Engine = iota
	PostgreSQL
)

func (e Engine) String() string {
	if e == PostgreSQL {
		return "postgres"
	}
	return "sqlite"
}

// EngineOf says which engine a URL names: "postgres://…" and "postgresql://…" are PostgreSQL,
// everything else is the path of a SQLite file.
func EngineOf(url string) Engine {
	if strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://") {
		return PostgreSQL
	}
	return SQLite
}

// Config says what to open.
type Config struct {
	URL        string // "/path/file.db" or "postgres://…"
	Schema     string // PostgreSQL schema, a-z 0-9 _; created if absent; default "public"
	Migrations fs.FS  // holds sqlite/*.sql and postgres/*.sql in goose format; the same versions in both
	// ReadCommitted lowers the isolation of PostgreSQL's Updates; see the package comment.
	ReadCommitted bool
}

// How much runs at once. PostgreSQL's default max_connections is 100.
const (
	maxBatch  = 256 // Updates per commit
	pgWriters = 4
	readers   = 8
	queueSize = 4096
)

// DB is an open store, safe for concurrent use.
type DB struct {
	engine  Engine
	path    string  // SQLite's file
	sql     *sql.DB // PostgreSQL's connections; SQLite's while the schema is brought up to date
	begin   string  // statement that begins an Update
	view    string  // statement that begins a View
	writers []*writer
	readers *pool
	finder  *finder // PostgreSQL's
	seed    maphash.Seed
	rebinds rebinder

	closing chan struct{} // closed by Close: nothing new is taken
	stopped chan struct{} // closed when writers and finder have ended
	once    sync.Once

	updates, commits atomic.Int64
	refusals         refusals

	kill *killer // fault tests
}

// Open opens the store and migrates it. It refuses a database made by a newer version
// (cradle.Conflict), and says Busy when the database cannot be reached.
func Open(ctx context.Context, c Config) (*DB, error) {
	db := &DB{
		engine:  EngineOf(c.URL),
		path:    c.URL,
		seed:    maphash.MakeSeed(),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	var err error
	if db.kill, err = theKiller(); err != nil {
		return nil, err
	}
	writers := 1
	if db.engine == PostgreSQL {
		writers = pgWriters
		db.begin = "begin isolation level serializable"
		if c.ReadCommitted {
			db.begin = "begin isolation level read committed"
		}
		db.view = "begin isolation level repeatable read read only"
		db.sql, err = openPostgres(c)
	} else {
		db.begin, db.view = "BEGIN IMMEDIATE", "BEGIN"
		db.sql, err = openSQLite(c)
	}
	if err != nil {
		return nil, err
	}
	db.rebinds.engine = db.engine
	if err := db.migrate(ctx, c); err != nil {
		db.sql.Close()
		return nil, refusal(err)
	}
	if db.engine == PostgreSQL {
		db.sql.SetMaxIdleConns(writers + readers)
	} else if err := db.sql.Close(); err != nil {
		return nil, fmt.Errorf("closing %s: %w", c.URL, err)
	}
	db.readers = newPool(db, readers)
	var running sync.WaitGroup
	for range writers {
		w := &writer{db: db, queue: make(chan *job, queueSize)}
		db.writers = append(db.writers, w)
		running.Go(w.run)
	}
	if db.engine == PostgreSQL {
		db.finder = &finder{db: db, queue: make(chan *job, queueSize), busy: make(chan struct{}, 1)}
		running.Go(db.finder.run)
	}
	go func() {
		running.Wait()
		close(db.stopped)
	}()
	return db, nil
}

// openSQLite creates the file itself so that it, and the WAL beside it, are the owner's alone.
func openSQLite(c Config) (*sql.DB, error) {
	f, err := os.OpenFile(c.URL, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "opening the database file: %w", err).
			WithHint("the folder must exist and be writable")
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("creating %s: %w", c.URL, err)
	}
	return sql.Open("sqlite", "file:"+escape(c.URL)+"?_pragma="+strings.Join(litePragmas, "&_pragma="))
}

// Close ends the store. Updates already waiting are still run; later ones fail with Busy.
func (db *DB) Close() error {
	db.once.Do(func() { close(db.closing) })
	<-db.stopped
	db.readers.close()
	return db.sql.Close()
}

// Engine says what the store runs on.
func (db *DB) Engine() Engine { return db.engine }

// Stats says what was done since Open, and what is to do.
type Stats struct {
	Updates int64 // functions whose transaction was committed
	Commits int64 // commits they shared

	Waiting int // Updates that wait for a writer
	Reading int // connections that read
}

// Stats returns them.
func (db *DB) Stats() Stats {
	s := Stats{Updates: db.updates.Load(), Commits: db.commits.Load(), Reading: len(db.readers.slots)}
	for _, w := range db.writers {
		s.Waiting += len(w.queue)
	}
	return s
}

// View runs fn on a snapshot of the store. fn may run again when the connection was lost
// in the middle, so it must reset its result variables. It returns ctx's error when ctx has ended
// before a statement.
func (db *DB) View(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return db.read(ctx, db.view, fn)
}

// Read is View without a transaction: every statement sees its own snapshot. It is the cheaper
// one for a single statement.
func (db *DB) Read(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return db.read(ctx, "", fn)
}

func (db *DB) read(ctx context.Context, begin string, fn func(context.Context, *Tx) error) error {
	for attempt := 0; ; attempt++ {
		c, err := db.readers.get(ctx)
		if err != nil {
			return db.public(err)
		}
		lost, err := db.readOn(ctx, c, begin, fn)
		if lost && attempt == 0 && ctx.Err() == nil {
			db.readers.drop() // the others are as old
			continue
		}
		return db.public(err)
	}
}

func (db *DB) readOn(ctx context.Context, c *conn, begin string, fn func(context.Context, *Tx) error) (lost bool, err error) {
	ok := false
	defer func() { db.readers.put(c, ok) }() // also when fn panics: then the connection is closed
	tx := &Tx{db: db, conn: c, caller: ctx}
	if begin != "" {
		if err := c.exec(begin); err != nil {
			return c.broken(err), away{err}
		}
	}
	if err = fn(ctx, tx); err == nil {
		err = tx.failed
	}
	if err != nil && c.broken(err) {
		return true, away{err}
	}
	if begin != "" {
		if e := c.exec("rollback"); e != nil {
			return c.broken(e), err // the reads were good; the connection is not
		}
	}
	ok = true
	return false, err
}

package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Bounds on a connection. No statement gets a context that can end: database/sql and both drivers
// would start a goroutine or a timer for each; a deadline on PostgreSQL's socket does the same work
// once per transaction, or per statement of a View, which may run for long.
const (
	connectTimeout = 5 * time.Second
	writeDeadline  = 30 * time.Second
	readDeadline   = 10 * time.Minute
	maxStatements  = 256
)

var forever = context.Background()

// conn is a connection with its prepared statements, used by one goroutine at a time.
type conn struct {
	lite *lite // SQLite's; nil: PostgreSQL's
	pg   *pgx.Conn
	sql  *sql.Conn // that holds pg

	// PostgreSQL: statements that travel with the next one whose result is asked for, and whose failed.
	later   []statementCall
	side    int // of later: where those of the functions begin that run abreast now
	culprit *job
}

// connect opens a connection or takes one that database/sql still holds.
func (db *DB) connect(ctx context.Context) (*conn, error) {
	if db.engine == SQLite {
		l, err := openLite(db.path)
		if err != nil {
			return nil, fmt.Errorf("opening the database: %w", err)
		}
		return &conn{lite: l}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+time.Second)
	defer cancel()
	c, err := db.sql.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	out := &conn{sql: c}
	err = c.Raw(func(d any) error {
		out.pg = d.(*stdlib.Conn).Conn()
		return nil
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return out, nil
}

// discard closes the connection for good.
func (c *conn) discard() {
	if c == nil {
		return
	}
	if c.lite != nil {
		c.lite.close()
		return
	}
	ctx, cancel := context.WithTimeout(forever, time.Second)
	c.pg.Close(ctx)
	cancel()
	c.sql.Raw(func(any) error { return errBad }) // database/sql then forgets it
	c.sql.Close()
}

// broken reports whether the connection cannot be used any more.
func (c *conn) broken(err error) bool {
	return c.pg != nil && (c.pg.IsClosed() || lost(err))
}

// deadline bounds what follows on this connection.
func (c *conn) deadline(d time.Duration) {
	if c.pg != nil {
		c.pg.PgConn().Conn().SetDeadline(time.Now().Add(d)) // an error shows at the next statement
	}
}

// byKeys has PostgreSQL plan each statement of a writer once, and find rows by their keys however few a table has by then:
// the plan is still used when it has millions.
func (c *conn) byKeys() error {
	if c.pg == nil {
		return nil
	}
	return c.exec(`SELECT set_config(name, CASE name WHEN 'plan_cache_mode' THEN 'force_generic_plan' ELSE 'off' END, false) FROM pg_settings
		WHERE name IN ('plan_cache_mode', 'enable_seqscan', 'enable_hashjoin', 'enable_mergejoin', 'enable_memoize')`) // some are younger than others
}

// exec runs a statement of ours that has no arguments.
func (c *conn) exec(text string) error {
	if c.pg != nil {
		_, err := c.pg.Exec(forever, text)
		return err
	}
	if err := c.lite.release(); err != nil {
		return err
	}
	_, err := c.lite.exec(text, nil)
	return err
}

// pool holds the connections of readers.
type pool struct {
	db    *DB
	slots chan struct{} // one per connection that may be in use

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

func newPool(db *DB, n int) *pool {
	return &pool{db: db, slots: make(chan struct{}, n)}
}

func (p *pool) get(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.slots
		return nil, errClosed
	}
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		c.deadline(readDeadline)
		return c, nil
	}
	p.mu.Unlock()
	c, err := p.db.connect(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	c.deadline(readDeadline)
	return c, nil
}

// put gives a connection back; one that is not good is closed.
func (p *pool) put(c *conn, good bool) {
	p.mu.Lock()
	good = good && !p.closed
	if good && c.lite != nil {
		good = c.lite.release() == nil // open rows would hold the snapshot that they are from
	}
	if good {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !good {
		c.discard()
	}
	<-p.slots
}

// drop closes the idle connections.
func (p *pool) drop() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		c.discard()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drop()
}

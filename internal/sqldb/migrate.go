package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"io/fs"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/cradle-iot/cradle"
)

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func (c Config) schema() string {
	if c.Schema == "" {
		return "public"
	}
	return c.Schema
}

func openPostgres(c Config) (*sql.DB, error) {
	if !schemaName.MatchString(c.schema()) {
		return nil, cradle.Errorf(cradle.Invalid, "schema %q: use a-z, 0-9 and '_'", c.Schema)
	}
	conf, err := pgx.ParseConfig(c.URL)
	if err != nil {
		// The driver's text may hold the password.
		return nil, &cradle.Error{Kind: cradle.Invalid, Detail: "the PostgreSQL URL cannot be read",
			Hint: "write postgres://role@host:port/database, and the role's password in ~/.pgpass", Err: err}
	}
	if conf.ConnectTimeout == 0 {
		conf.ConnectTimeout = connectTimeout
	}
	set := func(name, value string) {
		if _, given := conf.RuntimeParams[name]; !given {
			conf.RuntimeParams[name] = value
		}
	}
	conf.RuntimeParams["search_path"] = c.schema()
	set("application_name", "cradle")
	set("lock_timeout", "3s")
	set("idle_in_transaction_session_timeout", "60s") // a frozen replica must not hold row locks for ever
	set("synchronous_commit", "on")
	set("jit", "off")
	return stdlib.OpenDB(*conf, stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return false })), nil
}

// migrate brings the schema to this program's version.
func (db *DB) migrate(ctx context.Context, c Config) error {
	if db.engine == PostgreSQL {
		unlock, err := db.lockSchema(ctx, c.schema())
		if err != nil {
			return db.public(err)
		}
		defer unlock()
	}
	sub, err := fs.Sub(c.Migrations, db.engine.String())
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	dialect := goose.DialectSQLite3
	if db.engine == PostgreSQL {
		dialect = goose.DialectPostgres
	}
	p, err := goose.NewProvider(dialect, db.sql, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		if liteCode(err) != 0 && strings.Contains(err.Error(), "not a database") {
			return cradle.Errorf(cradle.Invalid, "%s is not a database", c.URL).WithHint("name another file")
		}
		return db.public(fmt.Errorf("reading the schema version: %w", err))
	}
	if have > want {
		return cradle.Errorf(cradle.Conflict, "the database has schema version %d, this program knows %d", have, want).
			WithHint("it was made by a newer version: start that one, or restore a backup")
	}
	if have == want {
		return nil
	}
	if _, err := p.Up(ctx); err != nil {
		return db.public(fmt.Errorf("migrating the schema from version %d to %d: %w", have, want, err))
	}
	return nil
}

// lockSchema takes an advisory lock, so that replicas that start together migrate one after the
// other, and makes the schema.
func (db *DB) lockSchema(ctx context.Context, schema string) (unlock func(), err error) {
	c, err := db.sql.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	h := fnv.New64a()
	h.Write([]byte("cradle schema " + schema))
	key := int64(h.Sum64())
	if _, err = c.ExecContext(ctx, "SET lock_timeout = 0"); err == nil {
		_, err = c.ExecContext(ctx, "SELECT pg_advisory_lock($1)", key)
	}
	if err == nil {
		var there bool // asked first: a role may use a schema that it may not create
		err = c.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", schema).Scan(&there)
		if err == nil && !there {
			_, err = c.ExecContext(ctx, "CREATE SCHEMA "+schema)
		}
	}
	if err != nil {
		c.Raw(func(any) error { return errBad })
		c.Close()
		return nil, fmt.Errorf("preparing schema %s: %w", schema, err)
	}
	return func() {
		// Ending the session gives the lock back and forgets its settings.
		c.Raw(func(d any) error {
			d.(*stdlib.Conn).Close()
			return errBad
		})
		c.Close()
	}, nil
}

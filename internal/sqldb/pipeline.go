package sqldb

import (
	"bytes"
	"database/sql"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// statementCall is a statement that waits to be sent.
type statementCall struct {
	text string
	args []any
}

// begin begins a transaction: on PostgreSQL together with its first statement.
func (c *conn) begin(text string) error {
	if c.pg != nil {
		c.later, c.foreign = []statementCall{{text: text}}, 1
		return nil
	}
	return c.exec(text)
}

// begun reports whether something of the transaction was sent; inside, that it is not lost.
func (c *conn) begun() bool { return c.pg == nil || c.pg.PgConn().TxStatus() != 'I' }
func (c *conn) inside() bool {
	return c.pg == nil || c.pg.PgConn().TxStatus() == 'T' || !c.begun() && len(c.later) > 0
}

// commit sends what waits together with the commit. What may be sent again when the connection turns out to be
// dead goes before it: after that nobody can know.
func (c *conn) commit() error {
	if !c.begun() {
		if err := c.flush(); err != nil {
			return err
		}
	}
	_, err := c.execArgs("commit", nil)
	return err
}

// rollback ends a transaction without a trace.
func (c *conn) rollback() error {
	c.later, c.foreign = nil, 0
	if !c.begun() {
		return nil
	}
	return c.exec("rollback")
}

// flush sends what waits; sendWith sends a statement behind it in the same round trip. An error of what waited for
// another function is unsaved.
func (c *conn) flush() error {
	if len(c.later) == 0 {
		return nil
	}
	_, err := c.sendWith("", nil, nil)
	return err
}

func (c *conn) sendWith(text string, args []any, row *pgRow) (n int64, err error) {
	later, foreign, begin := c.later, c.foreign, !c.begun()
	c.later, c.foreign = nil, 0
	var b pgx.Batch
	for _, s := range later {
		b.Queue(s.text, s.args...)
	}
	if text != "" {
		b.Queue(text, args...)
	}
	res := c.pg.SendBatch(forever, &b)
	for i := range later {
		if _, err = res.Exec(); err != nil {
			res.Close()
			if (i > 0 || !begin) && (i < foreign || text == "commit") && !c.broken(err) {
				return 0, unsaved{err}
			}
			return 0, err
		}
	}
	switch {
	case text == "":
	case row != nil:
		rows, _ := res.Query()
		row.take(rows)
		err = row.err
	default:
		var tag pgconn.CommandTag
		tag, err = res.Exec()
		n = tag.RowsAffected()
	}
	if e := res.Close(); err == nil {
		err = e
	}
	return n, err
}

// pgRow holds a row that was read from PostgreSQL, or why there is none.
type pgRow struct {
	types  *pgtype.Map
	fields []pgconn.FieldDescription
	values [][]byte
	err    error
}

// take reads the first row and closes rows.
func (r *pgRow) take(rows pgx.Rows) {
	defer rows.Close()
	if rows.Next() {
		r.fields = slices.Clone(rows.FieldDescriptions())
		raw := rows.RawValues()
		r.values = make([][]byte, len(raw))
		for i, v := range raw {
			r.values[i] = bytes.Clone(v)
		}
	}
	rows.Close()
	if r.err = rows.Err(); r.err != nil {
		r.values = nil
	}
}

// Err implements Row.
func (r *pgRow) Err() error { return r.err }

// Scan implements Row.
func (r *pgRow) Scan(dest ...any) error {
	switch {
	case r.err != nil:
		return r.err
	case r.values == nil:
		return sql.ErrNoRows
	case len(dest) != len(r.values):
		return fmt.Errorf("internal error: %d places for %d columns", len(dest), len(r.values))
	}
	for i, d := range dest {
		if err := r.types.Scan(r.fields[i].DataTypeOID, r.fields[i].Format, r.values[i], d); err != nil {
			return fmt.Errorf("column %s: %w", r.fields[i].Name, err)
		}
	}
	return nil
}

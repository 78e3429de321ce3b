package sqldb

import (
	"database/sql"
	"errors"
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
	of   *job    // whose function it is from; nil: the transaction's own, or a reader's
	to   *answer // nil: nobody asks what it brings
	set  *set    // of a Many, whose arguments grow until it is sent; of is nil when it is from several
}

// begin begins a transaction: on PostgreSQL together with its first statement.
func (c *conn) begin(text string) error {
	if c.pg != nil {
		c.later, c.culprit = append(c.later[:0], statementCall{text: text}), nil
		return nil
	}
	return c.exec(text)
}

// begun reports whether something of the transaction was sent; inside, that it is not lost.
func (c *conn) begun() bool { return c.pg == nil || c.pg.PgConn().TxStatus() != 'I' }
func (c *conn) inside() bool {
	return c.pg == nil || c.pg.PgConn().TxStatus() == 'T' || !c.begun() && len(c.later) > 0
}

// ready sends what may be sent again when the connection turns out to be dead. It goes before the commit: after that
// nobody can know.
func (c *conn) ready() error {
	if c.begun() {
		return nil
	}
	return c.send()
}

const commit = "commit"

// commit sends what waits together with the commit.
func (c *conn) commit() error {
	if c.pg == nil {
		return c.exec(commit)
	}
	c.later = append(c.later, statementCall{text: commit})
	return c.send()
}

// rollback ends a transaction without a trace.
func (c *conn) rollback() error {
	c.later = c.later[:0]
	if !c.begun() {
		return nil
	}
	if c.lite != nil {
		_ = c.lite.release() // whatever it says, nothing stays
	}
	return c.exec("rollback")
}

// send sends what waits in one round trip and fills in the answers. When a statement fails those behind it are not
// run; culprit is then the job that it is from, or the error is unsaved when no single function is to blame.
func (c *conn) send() error {
	calls, begin := c.later, !c.begun()
	defer func() {
		clear(calls)
		c.later, c.side = calls[:0], 0
	}()
	switch len(calls) {
	case 0:
		return nil
	case 1:
		return c.blame(calls, 0, begin, c.sendOne(&calls[0]))
	}
	var b pgx.Batch
	for _, s := range calls {
		b.Queue(s.text, s.args...)
	}
	res := c.pg.SendBatch(forever, &b)
	for i, s := range calls {
		var err error
		switch {
		case s.set != nil:
			rows, _ := res.Query()
			err = s.set.take(rows, c.pg.TypeMap())
		case s.to == nil || s.to.want == count:
			var tag pgconn.CommandTag
			tag, err = res.Exec()
			s.to.counted(tag, err)
		default:
			rows, _ := res.Query()
			err = s.to.take(rows)
		}
		if err != nil {
			res.Close()
			return c.blame(calls, i, begin, err)
		}
	}
	return res.Close()
}

// sendOne is send for a single statement.
func (c *conn) sendOne(s *statementCall) error {
	if s.set == nil && (s.to == nil || s.to.want == count) {
		tag, err := c.pg.Exec(forever, s.text, s.args...)
		s.to.counted(tag, err)
		return err
	}
	rows, _ := c.pg.Query(forever, s.text, s.args...)
	if s.set != nil {
		return s.set.take(rows, c.pg.TypeMap())
	}
	return s.to.take(rows)
}

// blame finds whose statement failed.
func (c *conn) blame(calls []statementCall, i int, begin bool, err error) error {
	s := calls[i]
	if err == nil || c.broken(err) || i == 0 && begin || s.text == commit {
		return err
	}
	var unsent pgx.ErrPreprocessingBatch // before anything was sent: some function's with this text
	if errors.As(err, &unsent) {
		s.of = nil
		for _, o := range calls {
			if o.text == unsent.SQL() && s.of != nil && s.of != o.of {
				return unsaved{err}
			}
			if o.text == unsent.SQL() {
				s.of = o.of
			}
		}
	}
	if c.culprit = s.of; c.culprit == nil {
		return unsaved{err}
	}
	return err
}

// want says what is asked of a statement.
type want int

const (
	first want = iota // row
	count             // of the rows that it touched
	all               // rows
)

// answer is what a statement brought on PostgreSQL, or why it brought nothing: as a Row, the first row.
type answer struct {
	want     want
	types    *pgtype.Map
	fields   []field
	values   [][]byte // of all rows
	affected int64
	err      error
}

// field is what a value needs to be read.
type field struct {
	name   string
	oid    uint32
	format int16
}

func (a *answer) counted(tag pgconn.CommandTag, err error) {
	if a != nil {
		a.affected, a.err = tag.RowsAffected(), err
	}
}

// take reads what was asked for and closes rows.
func (a *answer) take(rows pgx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		if a.fields == nil {
			a.fields = fieldsOf(rows)
		}
		a.values = copied(a.values, rows.RawValues())
		if a.want == first {
			break
		}
	}
	rows.Close()
	if a.err = rows.Err(); a.err != nil {
		a.values = nil
	}
	return a.err
}

func fieldsOf(rows pgx.Rows) []field {
	descriptions := rows.FieldDescriptions()
	fields := make([]field, len(descriptions))
	for i, d := range descriptions {
		fields[i] = field{d.Name, d.DataTypeOID, d.Format}
	}
	return fields
}

// copied appends copies of a row's values.
func copied(to, raw [][]byte) [][]byte {
	to = slices.Grow(to, len(raw))
	all := slices.Concat(raw...)
	for _, v := range raw {
		if len(v) > 0 { // an empty one stays what it is: it is not NULL
			v, all = all[:len(v):len(v)], all[len(v):]
		}
		to = append(to, v)
	}
	return to
}

// Err implements Row.
func (a *answer) Err() error { return a.err }

// Scan implements Row.
func (a *answer) Scan(dest ...any) error {
	switch {
	case a.err != nil:
		return a.err
	case a.values == nil:
		return sql.ErrNoRows
	}
	return a.scan(0, dest)
}

func (a *answer) scan(row int, dest []any) error {
	if len(dest) != len(a.fields) {
		return fmt.Errorf("internal error: %d places for %d columns", len(dest), len(a.fields))
	}
	for i, f := range a.fields {
		if err := a.types.Scan(f.oid, f.format, a.values[row*len(a.fields)+i], dest[i]); err != nil {
			return fmt.Errorf("column %s: %w", f.name, err)
		}
	}
	return nil
}

// answerRows is an answer as Rows.
type answerRows struct {
	*answer
	next int
}

func (r *answerRows) Next() bool {
	r.next++
	return r.err == nil && r.next*len(r.fields) <= len(r.values) && len(r.values) > 0
}
func (r *answerRows) Scan(dest ...any) error { return r.scan(r.next-1, dest) }
func (r *answerRows) Close()                 {}

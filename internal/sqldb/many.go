package sqldb

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Many is a statement of PostgreSQL's that serves many at once: what functions that run abreast ask of it travels as one,
// with an array for each argument. To begin a statement costs the database more than most rows do.
type Many struct {
	text  string
	kinds []string
}

// NewMany makes one. Columns are the arguments, as "account text, epoch bigint" (or bytea); the statement reads them
// from "asked", which has a row for each who asks, numbered by n. For AskMany it returns n as its first column. It
// must not matter in which order the rows are worked on, and their effects are not seen by one another.
func NewMany(columns, statement string) *Many {
	m := &Many{}
	var names, arrays []string
	for i, c := range strings.Split(columns, ", ") {
		name, kind, _ := strings.Cut(c, " ")
		m.kinds = append(m.kinds, kind)
		names = append(names, name)
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, kind))
	}
	m.text = "WITH asked AS (SELECT * FROM unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS asked (" + strings.Join(names, ", ") + ", n))" + statement
	return m
}

// AskMany asks for this function's row of m, without n. Only on PostgreSQL.
func (tx *Tx) AskMany(m *Many, args ...any) Row {
	tx.wrote = true
	a := &answer{want: first, types: tx.conn.pg.TypeMap()}
	tx.join(m, args, a)
	if tx.await(a); a.err != nil {
		tx.fail(a.err)
	}
	return a
}

// QueueMany is Queue for m. Only on PostgreSQL.
func (tx *Tx) QueueMany(m *Many, args ...any) {
	tx.wrote = true
	tx.join(m, args, nil)
}

// set is what several functions ask of a Many.
type set struct {
	many    *Many
	args    []any // a slice for each argument
	of      []*job
	answers []*answer // nil: nobody asks what it brings
}

// join adds a row to the set that waits, if there is one behind whatever else of this function waits, or begins one.
func (tx *Tx) join(m *Many, args []any, a *answer) {
	if len(args) != len(m.kinds) {
		panic(fmt.Sprintf("internal error: %d arguments for %d columns", len(args), len(m.kinds)))
	}
	c := tx.conn
	if tx.pause != nil {
		for i := len(c.later) - 1; i >= c.side; i-- {
			s := c.later[i]
			if s.of == tx.of || s.set != nil && s.set.has(tx.of) {
				break
			}
			if s.set != nil && s.set.many == m {
				s.set.add(tx.of, args, a)
				c.later[i].of = nil // not one function's
				return
			}
		}
	}
	s := &set{many: m, args: make([]any, len(args))}
	s.add(tx.of, args, a)
	c.later = append(c.later, statementCall{text: m.text, args: s.args, of: tx.of, set: s})
}

func (s *set) has(j *job) bool { return slices.Contains(s.of, j) }

func (s *set) add(j *job, args []any, a *answer) {
	for i, v := range args {
		switch s.many.kinds[i] {
		case "text":
			s.args[i] = appended(s.args[i], text(v))
		case "bigint":
			s.args[i] = appended(s.args[i], number(v))
		default:
			b, _ := v.([]byte) // nil is NULL
			s.args[i] = appended(s.args[i], b)
		}
	}
	s.of, s.answers = append(s.of, j), append(s.answers, a)
}

func appended[T any](slice any, v T) []T {
	s, _ := slice.([]T)
	return append(s, v)
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return reflect.ValueOf(v).String()
}

func number(v any) int64 {
	if n, ok := v.(int64); ok {
		return n
	}
	return reflect.ValueOf(v).Int()
}

// take gives each who asked its row.
func (s *set) take(rows pgx.Rows, types *pgtype.Map) error {
	defer rows.Close()
	var fields []field
	for rows.Next() {
		if fields == nil {
			fields = fieldsOf(rows)
		}
		raw := rows.RawValues()
		var n int64
		if err := types.Scan(fields[0].oid, fields[0].format, raw[0], &n); err != nil {
			return fmt.Errorf("internal error: the first column of a Many: %w", err)
		}
		if a := s.answers[n-1]; a != nil && a.values == nil {
			a.fields, a.values = fields[1:], copied([][]byte{}, raw[1:]) // there is a row, if only of n
		}
	}
	rows.Close()
	return rows.Err()
}

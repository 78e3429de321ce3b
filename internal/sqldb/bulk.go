package sqldb

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// InsertMany inserts many rows into a table: on PostgreSQL in one queued statement whose arguments are one
// array per column, on SQLite by statements of several rows. Each row has a value for each column; those of
// a column are all of one kind: text, whole number, or bytes.
func (tx *Tx) InsertMany(table string, columns []string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	into := "INSERT INTO " + table + " (" + strings.Join(columns, ", ") + ") "
	if tx.db.engine == SQLite {
		one := "(?" + strings.Repeat(", ?", len(columns)-1) + ")"
		for len(rows) > 0 {
			n := 1
			if len(rows) >= someRows {
				n = someRows
			}
			query := into + "VALUES " + one + strings.Repeat(", "+one, n-1)
			if _, err := tx.Exec(query, slices.Concat(rows[:n]...)...); err != nil {
				return err
			}
			rows = rows[n:]
		}
		return nil
	}
	arrays := make([]any, len(columns))
	casts := make([]string, len(columns))
	for c := range columns {
		var err error
		if arrays[c], casts[c], err = array(rows, c); err != nil {
			return fmt.Errorf("internal error: column %s of %s: %w", columns[c], table, err)
		}
	}
	return tx.Queue(into+"SELECT * FROM unnest("+strings.Join(casts, ", ")+")", arrays...)
}

// someRows is how many rows one of SQLite's statements inserts when there are that many.
const someRows = 4

// array collects a column, with the placeholder that PostgreSQL reads it by.
func array(rows [][]any, c int) (values any, placeholder string, err error) {
	switch v := reflect.ValueOf(rows[0][c]); {
	case v.Kind() == reflect.String:
		return gather(rows, c, v.Kind(), reflect.Value.String), "?::text[]", nil
	case v.CanInt():
		return gather(rows, c, v.Kind(), reflect.Value.Int), "?::bigint[]", nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return gather(rows, c, v.Kind(), reflect.Value.Bytes), "?::bytea[]", nil
	default:
		return nil, "", fmt.Errorf("a %T cannot be inserted", rows[0][c])
	}
}

func gather[T any](rows [][]any, c int, want reflect.Kind, get func(reflect.Value) T) []T {
	out := make([]T, len(rows))
	for i, r := range rows {
		v := reflect.ValueOf(r[c])
		if v.Kind() != want {
			panic(fmt.Sprintf("internal error: row %d has a %T where the first has a %v", i, r[c], want))
		}
		out[i] = get(v)
	}
	return out
}

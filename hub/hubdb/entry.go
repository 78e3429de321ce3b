package hubdb

import (
	"context"
	"strings"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// of prefixes each of a list of columns with a table's name.
func of(table, columns string) string {
	names := strings.FieldsFunc(columns, func(r rune) bool { return strings.ContainsRune(", \t\n", r) })
	return table + "." + strings.Join(names, ", "+table+".")
}

// twinOrEmpty are the columns of a twin in an outer join; version 0 means that none is stored.
var twinOrEmpty = func() string {
	var out []string
	for name := range strings.SplitSeq(twinColumns, ", ") {
		empty := "0"
		switch name {
		case "tags", "desired", "desired_meta", "reported", "reported_meta":
			empty = "'{}'"
		}
		out = append(out, "COALESCE(t."+name+", "+empty+")")
	}
	return strings.Join(out, ", ")
}()

// entrySize bounds the bytes of twins in one page, roughly; at least one entry is always returned.
const entrySize = 4 << 20

// Entries implements hub.Entries.
func (s *Store) Entries(ctx context.Context, name hub.Name, f hub.Filter) ([]hub.Entry, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	query, args := entryQuery(h, f)
	var out []hub.Entry
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out = nil
		rows, err := tx.Query(query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for size := 0; size < entrySize && rows.Next(); {
			e, n, err := scanEntry(rows.Scan, f)
			if err != nil {
				return err
			}
			size += n
			out = append(out, *e)
		}
		return rows.Err()
	})
	return out, err
}

func entryQuery(h int64, f hub.Filter) (string, []any) {
	columns, from, order := of("d", deviceColumns), " FROM devices d", " ORDER BY d.id"
	if f.Modules {
		columns, from, order = columns+", "+of("m", moduleColumns), " FROM modules m JOIN devices d ON d.hub = m.hub AND d.id = m.device", " ORDER BY m.device, m.id"
	}
	if f.Twins {
		module := "''"
		if f.Modules {
			module = "m.id"
		}
		columns += ", " + twinOrEmpty
		from += " LEFT JOIN twins t ON t.hub = d.hub AND t.device = d.id AND t.module = " + module
	}
	where, args := " WHERE d.hub = ? AND d.id > ?", []any{h, string(f.After)}
	if f.Modules {
		where, args = " WHERE m.hub = ? AND (m.device, m.id) > (?, ?)", []any{h, string(f.After), string(f.AfterModule)}
	}
	if f.Device != "" {
		where += " AND d.id = ?"
		args = append(args, string(f.Device))
	}
	if f.Disabled != nil {
		where += " AND d.disabled = ?"
		args = append(args, flag(*f.Disabled))
	}
	return "SELECT " + columns + from + where + order + " LIMIT ?", append(args, int64(f.Limit))
}

// scanEntry also returns about how many bytes its twin has.
func scanEntry(scan func(...any) error, f hub.Filter) (*hub.Entry, int, error) {
	var e hub.Entry
	size := 0
	last := scan
	if f.Twins {
		last = func(dest ...any) (err error) {
			e.Twin, err = scanTwin(func(twin ...any) error {
				err := scan(append(dest, twin...)...)
				for _, v := range twin {
					if s, ok := v.(*string); ok {
						size += len(*s)
					}
				}
				return err
			})
			if e.Twin != nil && e.Twin.Version == 0 {
				e.Twin = nil
			}
			return err
		}
	}
	if f.Modules {
		next := last
		last = func(dest ...any) (err error) {
			e.Module, _, err = scanModule(func(module ...any) error { return next(append(dest, module...)...) })
			e.Module.Auth.Primary, e.Module.Auth.Secondary = nil, nil
			return err
		}
	}
	d, _, err := scanDevice(last)
	if err != nil {
		return nil, 0, err
	}
	e.Device = *d
	e.Device.Auth.Primary, e.Device.Auth.Secondary = nil, nil
	return &e, size, nil
}

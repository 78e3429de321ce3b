package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// BenchmarkUpdate is a transaction like an issuance's: read one row, write two, lock and change the
// log's head; 32 callers at once, in turn or abreast. cpu-µs/op is this process alone, without PostgreSQL's.
func BenchmarkUpdate(b *testing.B) {
	for _, engine := range []string{"sqlite", "postgres", "postgres abreast"} {
		b.Run(engine, func(b *testing.B) {
			url := filepath.Join(b.TempDir(), "store.db")
			if engine != "sqlite" {
				url = testenv.Postgres(b)
			}
			db, err := sqldb.Open(b.Context(), sqldb.Config{URL: url, Schema: "thing", Migrations: migrations(1), ReadCommitted: true})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			err = db.Update(b.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO counter (id, n) VALUES ('head', 0)")
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 600)
			var next atomic.Int64
			b.SetParallelism(16)
			before, cpu := db.Stats(), cpuTime()
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					id := next.Add(2)
					of := ""
					if engine == "postgres abreast" {
						of = fmt.Sprint(id)
					}
					err := db.UpdateApart(context.Background(), "log", of, func(_ context.Context, tx *sqldb.Tx) error {
						n, err := tx.Carry("head", func(tx *sqldb.Tx) (any, error) {
							n := new(int64)
							return n, tx.QueryRow("SELECT n FROM counter WHERE id = ? FOR UPDATE", "head").Scan(n)
						}, func(tx *sqldb.Tx, n any) error {
							return tx.Queue("UPDATE counter SET n = ? WHERE id = ?", *n.(*int64), "head")
						})
						if err != nil {
							return err
						}
						*n.(*int64)++
						var m int64
						err = tx.QueryRow("SELECT id FROM item WHERE id = ?", id-2).Scan(&m)
						if err != nil && !errors.Is(err, sql.ErrNoRows) {
							return err
						}
						for i := range int64(2) {
							if err := tx.Queue("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", id+i, fmt.Sprint(id+i), data); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil {
						b.Error(err)
					}
				}
			})
			b.StopTimer()
			after := db.Stats()
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N)/1e3, "cpu-µs/op")
			b.ReportMetric(float64(after.Updates-before.Updates)/float64(max(1, after.Commits-before.Commits)), "updates/commit")
		})
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

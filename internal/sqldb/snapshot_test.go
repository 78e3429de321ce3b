package sqldb_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// TestSnapshot: copies of two databases that are written to meanwhile; the second never lacks what the first knew of it.
func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, filepath.Join(dir, "a #1.db")), open(t, filepath.Join(dir, "b.db"))
	insert := func(db *sqldb.DB, id int64) error {
		return db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", id, fmt.Sprint(id), make([]byte, 2000))
			return err
		})
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if insert(b, i) != nil || insert(a, i) != nil { // b first: a knows of what b has
				t.Error("insert")
				return
			}
		}
	})
	for range 5 {
		out := t.TempDir()
		copies := []sqldb.Copy{{From: filepath.Join(dir, "a #1.db"), To: filepath.Join(out, "a")}, {From: filepath.Join(dir, "b.db"), To: filepath.Join(out, "b")}}
		var last int64
		if err := sqldb.Snapshot(t.Context(), copies, func(done, total int64) {
			if done < last || done > total {
				t.Errorf("progress goes from %d to %d of %d", last, done, total)
			}
			last = done
		}); err != nil {
			t.Fatal(err)
		}
		var max [2]int64
		for i, c := range copies {
			if err := sqldb.CheckFile(t.Context(), c.To); err != nil {
				t.Error(err)
			}
			db, err := sql.Open("sqlite", c.To)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRow("SELECT coalesce(max(id), 0) FROM item").Scan(&max[i]); err != nil {
				t.Error(err)
			}
			db.Close()
		}
		if max[0] > max[1] {
			t.Errorf("the first copy knows of %d, the second has %d", max[0], max[1])
		}
		if err := sqldb.Snapshot(t.Context(), copies, nil); err == nil {
			t.Error("copied over a file that was there")
		}
	}
	close(stop)
	wg.Wait()
	if err := sqldb.Snapshot(t.Context(), []sqldb.Copy{{From: filepath.Join(dir, "none.db"), To: filepath.Join(dir, "x")}}, nil); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("no database: %v", err)
	}
}

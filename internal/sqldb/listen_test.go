package sqldb_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// ear keeps what a listener was told.
type ear struct {
	mu     sync.Mutex
	heard  []string
	others []bool
	lost   int
}

func (e *ear) listener() sqldb.Listener {
	locked := func(fn func()) { e.mu.Lock(); defer e.mu.Unlock(); fn() }
	return sqldb.Listener{Heard: func(s string) { locked(func() { e.heard = append(e.heard, s) }) }, Others: func(b bool) { locked(func() { e.others = append(e.others, b) }) },
		Lost: func() { locked(func() { e.lost++ }) }}
}

// until waits for what is to become true.
func (e *ear) until(t *testing.T, what string, ok func(*ear) bool) {
	t.Helper()
	testenv.Eventually(t, what, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return ok(e)
	}, e)
}

// String says what it was told.
func (e *ear) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprintf("heard %q, others %v, lost %d", e.heard, e.others, e.lost)
}

// TestListen: processes over one PostgreSQL hear each other, in one order, and know whether they are alone; over SQLite a process
// is alone.
func TestListen(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		a, b := open(t, url), open(t, url)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var wg sync.WaitGroup
		defer wg.Wait()
		var ears [2]ear
		listen := func(ctx context.Context, db *sqldb.DB, e *ear) {
			wg.Go(func() {
				if err := db.Listen(ctx, "news", e.listener()); err != nil {
					t.Error(err)
				}
			})
		}
		if err := a.Listen(ctx, "no channel; DROP", sqldb.Listener{}); err == nil {
			t.Error("a channel that is none")
		}
		listen(ctx, a, &ears[0])
		if a.Engine() == sqldb.SQLite {
			if err := a.Say(ctx, "news", "x"); err != nil {
				t.Error(err)
			}
			stop()
			return
		}
		ears[0].until(t, "alone", func(e *ear) bool { return slices.Equal(e.others, []bool{false}) })
		bctx, bstop := context.WithCancel(ctx)
		defer bstop()
		listen(bctx, b, &ears[1])
		ears[1].until(t, "not alone", func(e *ear) bool { return slices.Equal(e.others, []bool{true}) })
		ears[0].until(t, "not alone any more", func(e *ear) bool { return slices.Equal(e.others, []bool{false, true}) })
		var says sync.WaitGroup
		for i, db := range []*sqldb.DB{a, b} {
			says.Go(func() {
				for j := range 20 {
					if err := db.Say(ctx, "news", fmt.Sprint(i, j, "'ü"), fmt.Sprint(i, j, "b")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		says.Wait()
		for i := range ears {
			ears[i].until(t, "all of it", func(e *ear) bool { return len(e.heard) == 80 })
		}
		if !slices.Equal(ears[0].heard, ears[1].heard) {
			t.Errorf("two orders: %q, %q", ears[0].heard, ears[1].heard)
		}
		// The connection is cut.
		if err := b.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error {
			return tx.Queue(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND classid::bigint = ?`, int64(0x6372646c))
		}); err != nil {
			t.Fatal(err)
		}
		for i := range ears {
			ears[i].until(t, "a new connection", func(e *ear) bool { return e.lost == 1 })
		}
		if err := a.Say(ctx, "news", "again"); err != nil {
			t.Error(err)
		}
		for i := range ears {
			ears[i].until(t, "over the new one", func(e *ear) bool { return e.heard[len(e.heard)-1] == "again" })
		}
		bstop()
		ears[0].until(t, "alone again", func(e *ear) bool { return !e.others[len(e.others)-1] })
		stop()
	})
}

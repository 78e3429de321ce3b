package sqldb

import "runtime"

// Queued returns how many Updates wait at the writer of Update.
func Queued(db *DB) int { return len(db.writers[0].queue) }

// Yield lets other goroutines run.
func Yield() { runtime.Gosched() }

// Rewrite is rewrite, and whether the statement only reads.
func Rewrite(e Engine, query string) (string, bool) {
	s := rewrite(e, query)
	return s.text, s.reads
}

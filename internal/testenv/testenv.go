// Package testenv gives tests the real things they run against: a PostgreSQL server of the test
// process's own, a NATS server, PKCS#11 tokens, a check that a tool is installed, and a Buffer for what they print.
//
// A test whose tool is missing is skipped, unless CRADLE_REQUIRE=1 is set: then it fails, so that
// continuous integration cannot pass by skipping.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Require skips (or fails, see the package comment) the test when a tool is not installed.
func Require(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "%s is not installed: run make deps", tool)
		}
	}
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CRADLE_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Postgres returns the URL of a fresh, empty database on the server that this process
// shares between its tests. The database is dropped at the end of the test.
func Postgres(t testing.TB) string {
	t.Helper()
	if postgresBin() == "" {
		missing(t, "PostgreSQL is not installed: run make deps")
	}
	shared.once.Do(func() { shared.server, shared.err = StartPostgres() })
	if shared.err != nil {
		t.Fatalf("starting PostgreSQL: %v", shared.err)
	}
	return shared.server.Database(t)
}

// PostgresServer returns a server of the test's own, which it may stop, kill and start again.
func PostgresServer(t testing.TB) *Server {
	t.Helper()
	if postgresBin() == "" {
		missing(t, "PostgreSQL is not installed: run make deps")
	}
	s, err := StartPostgres()
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// EachStore runs f as sub-tests "sqlite" and "postgres", each with the URL of a fresh store in the
// form that internal/sqldb takes. The quick loop leaves PostgreSQL to make test: it runs with CRADLE_REQUIRE=1 or
// CRADLE_POSTGRES=1.
func EachStore(t *testing.T, f func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "store.db")) })
	OnPostgres(t, f)
}

// OnPostgres is the second half of EachStore, for what only PostgreSQL has.
func OnPostgres(t *testing.T, f func(t *testing.T, url string)) {
	t.Helper()
	t.Run("postgres", func(t *testing.T) {
		if os.Getenv("CRADLE_REQUIRE") == "" && os.Getenv("CRADLE_POSTGRES") == "" {
			t.Skip("set CRADLE_POSTGRES=1, or run make test")
		}
		f(t, Postgres(t))
	})
}

// Stride is how far a test of many like cases goes at a time: 1, every case, with CRADLE_REQUIRE=1 (make test), else n, a sample.
func Stride(n int) int {
	if os.Getenv("CRADLE_REQUIRE") != "" {
		return 1
	}
	return n
}

// Long skips a test that takes minutes, unless CRADLE_REQUIRE=1 (make test) asks for all of them.
func Long(t testing.TB) {
	t.Helper()
	if os.Getenv("CRADLE_REQUIRE") == "" {
		t.Skip("takes minutes; set CRADLE_REQUIRE=1, or run make test")
	}
}

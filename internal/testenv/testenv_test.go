package testenv_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cradle-iot/cradle/internal/testenv"
)

func query(t *testing.T, url, q string) (string, error) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		return "", err
	}
	defer c.Close(t.Context())
	var s string
	err = c.QueryRow(t.Context(), q).Scan(&s)
	return s, err
}

func TestDatabasesAreApartAndDurable(t *testing.T) {
	a, b := testenv.Postgres(t), testenv.Postgres(t)
	if a == b {
		t.Fatal("two calls, one database")
	}
	for _, q := range []string{"SHOW fsync", "SHOW synchronous_commit"} {
		if got, err := query(t, a, q); err != nil || got != "on" {
			t.Errorf("%s: got %q, %v, want on", q, got, err)
		}
	}
}

func TestStopKillStart(t *testing.T) {
	s := testenv.PostgresServer(t)
	url := s.Database(t)
	for _, end := range []func(){s.Stop, s.Kill} {
		pids := s.Pids()
		if len(pids) < 2 {
			t.Fatalf("got processes %v, want the server and its children", pids)
		}
		end()
		if _, err := query(t, url, "SELECT 'x'"); err == nil {
			t.Fatal("a stopped server answers")
		}
		if got := s.Pids(); got != nil {
			t.Fatalf("stopped, but has processes %v", got)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if got, err := query(t, url, "SELECT 'x'"); err != nil || got != "x" {
			t.Fatalf("after the start: got %q, %v", got, err)
		}
	}
}

// TestNothingIsLeft runs itself as a child, which is killed and cannot clean up.
func TestNothingIsLeft(t *testing.T) {
	if os.Getenv("CRADLE_TESTENV_CHILD") == "1" {
		s := testenv.PostgresServer(t)
		os.Stdout.WriteString("server " + strconv.Itoa(s.Pids()[0]) + " " + s.Database(t) + "\n")
		time.Sleep(time.Hour)
	}
	testenv.PostgresServer(t) // skips when there is none
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingIsLeft$")
	cmd.Env = append(os.Environ(), "CRADLE_TESTENV_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var pid int
	var dir string
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if f := strings.Fields(sc.Text()); len(f) == 3 && f[0] == "server" {
			pid, _ = strconv.Atoi(f[1])
			conf, err := pgx.ParseConfig(f[2])
			if err != nil {
				t.Fatal(err)
			}
			dir = conf.Host
			break
		}
	}
	if _, err := os.Stat(dir); pid == 0 || err != nil {
		t.Fatalf("the child's server: pid %d, folder %v", pid, err)
	}
	cmd.Process.Kill()
	for range 600 { // however slow the machine; the watchdog needs a fraction of a second
		_, err := os.Stat(dir)
		if errors.Is(err, os.ErrNotExist) && syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("after the child was killed, process %d or folder %s is left", pid, dir)
}

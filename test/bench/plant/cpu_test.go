package plant

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := []byte("4711 (a ) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0 99 0 0\n")
	for ended, want := range map[bool]time.Duration{false: 1200 * time.Millisecond, true: 1270 * time.Millisecond} {
		if got, err := parseStat(line, ended); err != nil || got != want {
			t.Errorf("ended %v: %v, %v; want %v", ended, got, err, want)
		}
	}
	if _, err := parseStat([]byte("1 (x) S 1"), false); err == nil {
		t.Error("a short line is read")
	}
	if d, err := cpuOf(1, true); err != nil || d < 0 {
		t.Errorf("of process 1: %v, %v", d, err)
	}
}

package main

import "testing"

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 3200, 4 << 20: 3200, 16 << 20: 800, 128 << 20: 100, 256 << 20: 50, 8 << 30: 50} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MB live: GOGC %d, want %d", live>>20, got, want)
		}
	}
}

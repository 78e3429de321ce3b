package main

import (
	"errors"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/cli"
)

// TestEventsUsage: what is no cursor or count is wrong usage, before any service is asked.
func TestEventsUsage(t *testing.T) {
	for _, c := range []HubEventsCmd{{From: "abc"}, {From: "-1"}, {From: "18446744073709551616"}, {Limit: -1}} {
		var usage *cli.UsageError
		if err := c.Run(t.Context(), &cli.Out{}); !errors.As(err, &usage) {
			t.Errorf("from %q, limit %d: %v", c.From, c.Limit, err)
		}
	}
}

func TestKeepTime(t *testing.T) {
	for in, want := range map[string]time.Duration{"7d": 7 * 24 * time.Hour, "0d": 0, "0": 0, "90m": 90 * time.Minute, "d": -1, "-1d": -1, "-1h": -1, "7": -1, "99999d": -1, "1.5d": -1} {
		var k keepTime
		if err := k.UnmarshalText([]byte(in)); (err != nil) != (want < 0) || err == nil && time.Duration(k) != want {
			t.Errorf("%s: %v %v", in, time.Duration(k), err)
		}
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]int64{"10GB": 10e9, "512MiB": 512 << 20, "0": 0, "17": 17, "1 tb": 1e12, "": -1, "GB": -1, "-1": -1, "1XB": -1, "99999999TB": -1} {
		var z byteSize
		if err := z.UnmarshalText([]byte(in)); (err != nil) != (want < 0) || err == nil && int64(z) != want {
			t.Errorf("%s: %d %v", in, z, err)
		}
	}
}

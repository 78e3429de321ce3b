package testenv

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// ports were handed out to tests of this process.
var ports sync.Map

// Address is a port of 127.0.0.1 where nobody listens, for a program that has to be told its port or comes back to it. It is
// below those that Linux gives to who asks for any, so that nobody gets it while the program is not there.
func Address(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(22_000)))
		if _, taken := ports.LoadOrStore(addr, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

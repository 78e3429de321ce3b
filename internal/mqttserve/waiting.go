package mqttserve

import (
	"net"
	"net/netip"
	"sync"

	"github.com/cradle-iot/cradle"
)

// waiting counts connections that are not authenticated, all and per address.
type waiting struct {
	max, maxPerIP int

	mu    sync.Mutex
	all   int
	perIP map[netip.Addr]int
}

func (w *waiting) enter(ip netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all >= w.max {
		return cradle.Errorf(cradle.Busy, "%d connections wait for authentication, no more are taken", w.all)
	}
	if w.perIP[ip] >= w.maxPerIP {
		return cradle.Errorf(cradle.Busy, "%d connections of this address wait for authentication, no more are taken", w.perIP[ip])
	}
	if w.perIP == nil {
		w.perIP = map[netip.Addr]int{}
	}
	w.all++
	w.perIP[ip]++
	return nil
}

func (w *waiting) leave(ip netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all--
	if w.perIP[ip]--; w.perIP[ip] <= 0 {
		delete(w.perIP, ip)
	}
}

// addressOf is the address that counts: IPv6 hosts own a /64.
func addressOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		return p.Addr()
	}
	return ip
}

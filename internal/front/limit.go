package front

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// ripe is the age from which a connection that is still in its handshake may be closed to make place for a
// new one. A handshake takes milliseconds; who needs a second while places are short is slow by will or hopeless.
const ripe = time.Second

// limiter counts connections per address and those that have not finished their handshake ("pending"). When
// the pending are at their limit, the oldest that is ripe makes place; while none is, accepting waits, so that
// new connections stay in the kernel's queue. So slow clients (slow loris) cost everybody else at most a second.
type limiter struct {
	maxPending int
	maxPerIP   int

	mu      sync.Mutex
	freed   chan struct{} // has a token when a place may have become free
	pending list.List     // of *admitted, oldest first
	perIP   map[netip.Addr]int
}

// admitted is a TCP connection that was let in; Close takes it out of the counts.
type admitted struct {
	net.Conn
	l       *limiter
	ip      netip.Addr
	since   time.Time
	element *list.Element // in pending; nil after settle
	once    sync.Once
	ticket  ticket
}

func (l *limiter) init() {
	l.freed = make(chan struct{}, 1)
	l.perIP = map[netip.Addr]int{}
}

// admit counts the connection in; false when its address has too many.
func (l *limiter) admit(raw net.Conn) (*admitted, bool) {
	a := &admitted{Conn: raw, l: l, ip: addrOf(raw), since: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxPerIP > 0 {
		if l.perIP[a.ip] >= l.maxPerIP {
			return nil, false
		}
		l.perIP[a.ip]++
	}
	a.element = l.pending.PushBack(a)
	return a, true
}

// addrOf is the address that counts: IPv6 hosts own a /64.
func addrOf(c net.Conn) netip.Addr {
	t, ok := c.RemoteAddr().(*net.TCPAddr)
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

// settle says that a is not pending any more.
func (l *limiter) settle(a *admitted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.element == nil {
		return
	}
	l.pending.Remove(a.element)
	a.element = nil
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// wait returns when one more connection may be pending, or ctx ends.
func (l *limiter) wait(ctx context.Context) {
	for {
		l.mu.Lock()
		if l.pending.Len() < l.maxPending {
			l.mu.Unlock()
			return
		}
		oldest := l.pending.Front().Value.(*admitted)
		l.mu.Unlock()
		left := ripe - time.Since(oldest.since)
		if left <= 0 {
			l.settle(oldest)
			oldest.Close() // its goroutine finds out
			continue
		}
		t := time.NewTimer(left)
		select {
		case <-l.freed:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// closePending closes every connection that is still in its handshake.
func (l *limiter) closePending() {
	l.mu.Lock()
	var all []*admitted
	for e := l.pending.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*admitted))
	}
	l.mu.Unlock()
	for _, a := range all {
		a.Close()
	}
}

// Close implements net.Conn.
func (a *admitted) Close() error {
	a.once.Do(func() {
		a.l.settle(a)
		if a.l.maxPerIP > 0 {
			a.l.mu.Lock()
			if a.l.perIP[a.ip]--; a.l.perIP[a.ip] <= 0 {
				delete(a.l.perIP, a.ip)
			}
			a.l.mu.Unlock()
		}
	})
	return a.Conn.Close()
}

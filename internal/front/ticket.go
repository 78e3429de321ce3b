package front

// ticket keeps back what a TLS 1.3 server sends by itself at the end of a handshake, a session ticket, until there is
// something else to send: a write to the socket less for each connection, and for clients a packet less. In the
// protocols served here the client speaks first, so it gets its ticket before the first answer (RFC 8446 §4.6.1: at any
// time after the client's Finished). Who says nothing gets none.
//
// tls.Conn makes its calls of Write one after the other. holding is set before the handshake and cleared after it.
type ticket struct {
	holding bool
	kept    []byte
}

// applicationData is the outer type of all records that are encrypted (RFC 8446 §5.2). The server's flights begin with
// a ServerHello, which is not; after them come only tickets, and alerts, which release is for.
const applicationData = 23

// Write implements net.Conn.
func (a *admitted) Write(p []byte) (int, error) {
	if a.ticket.holding && len(p) > 0 && p[0] == applicationData {
		a.ticket.kept = append(a.ticket.kept, p...)
		return len(p), nil
	}
	kept := len(a.ticket.kept)
	if kept == 0 {
		return a.Conn.Write(p)
	}
	both := append(a.ticket.kept, p...)
	a.ticket.kept = nil
	n, err := a.Conn.Write(both)
	return max(n-kept, 0), err
}

// release sends what a handshake that failed has left, its alert.
func (a *admitted) release() {
	a.ticket.holding = false
	if len(a.ticket.kept) > 0 {
		_, _ = a.Write(nil)
	}
}

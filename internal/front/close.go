package front

import "syscall"

// Close ends the connection. Who has said close_notify and closed TCP too, between two requests, is not sent our
// close_notify (RFC 8446 §6.1): there is nobody to read it, it is answered by a reset, and it costs as much as an answer.
func (c *conn) Close() error {
	if a, ok := c.Conn.NetConn().(*admitted); ok && c.over.Load() == 1 && a.finished() {
		return a.Close()
	}
	return c.Conn.Close()
}

// finished reports whether the peer has closed its side of TCP, and all that it sent was read.
func (a *admitted) finished() bool {
	conn, ok := a.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	n := -1
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _ = syscall.Read(int(fd), b[:])
		return true // whatever it says: nothing is waited for
	})
	return err == nil && n == 0
}

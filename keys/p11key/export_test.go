//go:build cgo

package p11key

import "github.com/miekg/pkcs11"

// Close logs out and unloads the module, so that the next test's token is found.
func (t *Token) Close() {
	if c := t.conn; c != nil {
		t.drop(c)
	}
}

// Break does what a module does whose token was unplugged or whose daemon died: every session ends.
func (t *Token) Break() {
	m := pkcs11.New(t.uri.Module)
	_ = m.Finalize()
	m.Destroy()
}

// Impatient lets the next attempt to connect be at once.
func (t *Token) Impatient() { t.failed = t.failed.Add(-2 * reconnect) }

//go:build !cgo

package p11key

import (
	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
)

// Open says what is missing.
func Open(uri, pinFile string) (keystore.Store, error) {
	if _, err := ParseURI(uri); err != nil {
		return nil, err
	}
	return nil, cradle.Errorf(cradle.Invalid, "this binary was built without PKCS#11, which needs cgo").
		WithHint("build it with: make build PKCS11=1 (a C compiler is needed, and the binary is no longer static)")
}

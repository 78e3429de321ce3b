package cms

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
)

const wrapIV = 0xa6a6a6a6a6a6a6a6 // RFC 3394 §2.2.3.1

// wrapKey is the AES key wrap of RFC 3394 §2.2.1.
func wrapKey(kek, key []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, bad("a key-encryption key of %d bytes", len(kek))
	}
	n := len(key) / 8
	if n < 2 || len(key)%8 != 0 {
		return nil, bad("a key of %d bytes cannot be wrapped", len(key))
	}
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], wrapIV)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[8:], out[8*i:])
			block.Encrypt(b[:], b[:])
			binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(n*j+i))
			copy(out[8*i:], b[8:])
		}
	}
	copy(out, b[:8])
	return out, nil
}

// unwrapKey is RFC 3394 §2.2.2 with its integrity check.
func unwrapKey(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, bad("a key-encryption key of %d bytes", len(kek))
	}
	n := len(wrapped)/8 - 1
	if n < 2 || len(wrapped)%8 != 0 || len(wrapped) > 256 {
		return nil, bad("a wrapped key of %d bytes", len(wrapped))
	}
	out := make([]byte, 8*n)
	copy(out, wrapped[8:])
	var b [16]byte
	copy(b[:8], wrapped)
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(n*j+i))
			copy(b[8:], out[8*(i-1):])
			block.Decrypt(b[:], b[:])
			copy(out[8*(i-1):], b[8:])
		}
	}
	if subtle.ConstantTimeCompare(b[:8], binary.BigEndian.AppendUint64(nil, wrapIV)) != 1 {
		return nil, bad("the content key does not unwrap: wrong key, or altered")
	}
	return out, nil
}

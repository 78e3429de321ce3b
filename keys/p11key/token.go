//go:build cgo

package p11key

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
)

// Token is a store of issuing keys in one PKCS#11 token.
type Token struct {
	uri     URI
	pinFile string

	mu     sync.Mutex // one connects at a time
	conn   *connection
	failed time.Time // of the newest attempt to connect that did not work
	why    error     // its reason
	locked error     // set when the token refused the PIN: it is not tried again
}

// connection is a logged-in module. It is closed when the last signature that uses it is done.
type connection struct {
	*crypto11.Context
	users sync.WaitGroup
}

var _ keystore.Store = (*Token)(nil)

const (
	sessions  = 16              // at most, pooled
	wait      = 5 * time.Second // for a free session
	reconnect = time.Second     // between attempts to reach a token that went away
)

// Open logs in to the token that uri names. pinFile is needed unless uri has a pin-source or systemd hands in the
// credential.
func Open(uri, pinFile string) (keystore.Store, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if u.Module == "" {
		return nil, cradle.Errorf(cradle.Invalid, "the pkcs11: URI names no module").WithHint("add ?module-path=/path/of/module.so, for SoftHSM /usr/lib/softhsm/libsofthsm2.so")
	}
	if (u.Token == "") == (u.Serial == "") {
		return nil, cradle.Errorf(cradle.Invalid, "the pkcs11: URI must name the token by token=LABEL or serial=NUMBER, and by one of them alone")
	}
	if pinFile == "" {
		pinFile = u.PIN
	}
	t := &Token{uri: u, pinFile: pinFile}
	c, err := t.connect()
	if err != nil {
		return nil, err
	}
	c.users.Done()
	return t, nil
}

// Scheme implements keystore.Store.
func (t *Token) Scheme() string { return Scheme }

// connect returns the connection, making one if there is none. The caller ends its use of it by users.Done.
func (t *Token) connect() (*connection, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil {
		t.conn.users.Add(1)
		return t.conn, nil
	}
	if t.locked != nil {
		return nil, t.locked
	}
	if time.Since(t.failed) < reconnect {
		return nil, t.why
	}
	pin, err := readPIN(t.pinFile)
	if err != nil {
		return nil, err
	}
	ctx, err := crypto11.Configure(&crypto11.Config{Path: t.uri.Module, TokenLabel: t.uri.Token, TokenSerial: t.uri.Serial, Pin: pin,
		MaxSessions: sessions, PoolWaitTimeout: wait})
	if err != nil {
		var code pkcs11.Error
		if errors.As(err, &code) {
			switch code {
			case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
				t.locked = cradle.Errorf(cradle.Busy, "the PKCS#11 token %s refused the PIN of %s: %w", t.name(), t.pinFile, err).
					WithHint("mend the PIN file, then start again; the PIN is not tried a second time, so that the token does not lock itself")
				return nil, t.locked
			}
		}
		t.failed, t.why = time.Now(), cradle.Errorf(cradle.Busy, "PKCS#11 token %s: %w", t.name(), err).
			WithHint("is the module %s right, and the token there? softhsm2-util --show-slots, or pkcs11-tool --list-token-slots, lists them", t.uri.Module)
		return nil, t.why
	}
	t.conn = &connection{Context: ctx}
	t.conn.users.Add(1)
	return t.conn, nil
}

func (t *Token) name() string {
	if t.uri.Token != "" {
		return t.uri.Token
	}
	return "with serial number " + t.uri.Serial
}

// drop gives a broken connection up: the next call connects anew. Nobody uses the module any more when it is closed,
// since closing the last connection unloads it.
func (t *Token) drop(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != c {
		return
	}
	t.conn = nil
	c.users.Wait()
	_ = c.Close()
}

// with runs f over a connection, and once more over a new one when the token had gone away.
func (t *Token) with(f func(c *connection) error) error {
	for again := false; ; again = true {
		c, err := t.connect()
		if err != nil {
			return err
		}
		err = f(c)
		c.users.Done()
		if err == nil || !gone(err) {
			return err
		}
		t.drop(c)
		if again {
			return cradle.Errorf(cradle.Busy, "PKCS#11 token %s: %w", t.name(), err)
		}
	}
}

// gone reports whether an error says that token, session or module are not what they were when we connected.
// Anything else (a key that may not sign, a mechanism that is missing) will not be mended by connecting again.
func gone(err error) bool {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	switch code {
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED:
		return true
	}
	return false
}

// Generate implements keystore.Store.
func (t *Token) Generate(_ context.Context, label string, a keystore.Algorithm) (crypto.Signer, keystore.Key, error) {
	id := make([]byte, 16)
	rand.Read(id)
	var pub crypto.PublicKey
	err := t.with(func(c *connection) error {
		public, err := crypto11.NewAttributeSetWithIDAndLabel(id, []byte(label))
		if err != nil {
			return err
		}
		private := public.Copy()
		var k crypto.Signer
		switch a {
		case keystore.P256:
			k, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
		case keystore.P384:
			k, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P384())
		case keystore.RSA3072, keystore.RSA4096:
			bits := map[keystore.Algorithm]int{keystore.RSA3072: 3072, keystore.RSA4096: 4096}[a]
			if err := errors.Join(private.Set(crypto11.CkaDecrypt, false), public.Set(crypto11.CkaEncrypt, false)); err != nil {
				return err
			}
			k, err = c.GenerateRSAKeyPairWithAttributes(public, private, bits)
		default:
			return fmt.Errorf("internal error: no algorithm %q", a)
		}
		if err == nil {
			pub = k.Public()
		}
		return err
	})
	if err != nil {
		return nil, keystore.Key{}, fmt.Errorf("making a key in the token %s: %w", t.name(), err)
	}
	u := URI{Token: t.uri.Token, Serial: t.uri.Serial, Object: label, ID: id}
	return &key{t: t, u: u, pub: pub}, keystore.Key{Ref: u.String()}, nil
}

// Open implements keystore.Store. The token is asked when the key signs for the first time.
func (t *Token) Open(_ context.Context, k keystore.Key, pub crypto.PublicKey) (crypto.Signer, error) {
	u, err := ParseURI(k.Ref)
	if err != nil {
		return nil, err
	}
	if u.Token != t.uri.Token || u.Serial != t.uri.Serial {
		return nil, cradle.Errorf(cradle.NotFound, "an issuing key is in the PKCS#11 token %q, and serve has %q", u.Token+u.Serial, t.uri.Token+t.uri.Serial).
			WithHint("start serve with a --keys for each token that holds keys")
	}
	return &key{t: t, u: u, pub: pub}, nil
}

// key signs in a token.
type key struct {
	t   *Token
	u   URI
	pub crypto.PublicKey

	mu   sync.Mutex
	conn *connection // that signer belongs to
	s    crypto.Signer
}

// Public implements crypto.Signer.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Sign implements crypto.Signer.
func (k *key) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	err = k.t.with(func(c *connection) error {
		s, err := k.find(c)
		if err == nil {
			sig, err = s.Sign(r, digest, opts)
		}
		return err
	})
	return sig, err
}

// find looks the key up in the token, once for each connection.
func (k *key) find(c *connection) (crypto.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == c {
		return k.s, nil
	}
	found, err := c.FindKeyPairs(k.u.ID, []byte(k.u.Object))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, cradle.Errorf(cradle.NotFound, "the PKCS#11 token %s has no key %q", k.t.name(), k.u.Object)
	}
	s := found[0]
	if have, ok := s.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !have.Equal(k.pub) {
		return nil, cradle.Errorf(cradle.NotFound, "the key %q in the PKCS#11 token %s is another one than the certificate's", k.u.Object, k.t.name())
	}
	k.conn, k.s = c, s
	return s, nil
}

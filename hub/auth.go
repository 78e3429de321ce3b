package hub

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Auth says how a device or module proves itself. Keys are secrets: its texts do not show them.
type Auth struct {
	Type      string // iothub.SAS, SelfSigned, CertificateAuthority or AuthNone
	Primary   []byte // keys of SAS, iothub.MinKey to MaxKey bytes; nil with the other types
	Secondary []byte
}

// String keeps the keys out of logs.
func (a Auth) String() string { return a.Type }

// GoString keeps the keys out of logs.
func (a Auth) GoString() string { return a.Type }

// keys makes the keys that were not given: those of the entry before, if it had some, else new ones.
func (a *Auth) keys(before Auth) {
	if a.Type != iothub.SAS {
		return
	}
	fill := func(k *[]byte, before []byte) {
		if *k == nil {
			*k = before
		}
		if *k == nil {
			*k = sas.NewKey()
		}
	}
	fill(&a.Primary, before.Primary)
	fill(&a.Secondary, before.Secondary)
}

// authFromWire checks what a registry client sent. Of the credentials only those of the type are kept: SDKs
// send back the others as they read them.
func authFromWire(w *iothub.Authentication) (a Auth, primary, secondary string, err error) {
	x := w.X509Thumbprint
	a.Type = w.Type
	if a.Type == "" {
		a.Type = iothub.SAS
		if cmp.Or(x.PrimaryThumbprint, x.SecondaryThumbprint) != "" {
			a.Type = iothub.SelfSigned
		}
	}
	switch a.Type {
	case iothub.SAS:
		if a.Primary, err = checkKey("primary", w.SymmetricKey.PrimaryKey); err != nil {
			return a, "", "", err
		}
		a.Secondary, err = checkKey("secondary", w.SymmetricKey.SecondaryKey)
	case iothub.SelfSigned:
		if primary, err = checkThumbprint("primary", x.PrimaryThumbprint); err != nil {
			return a, "", "", err
		}
		secondary, err = checkThumbprint("secondary", x.SecondaryThumbprint)
	case iothub.CertificateAuthority, iothub.AuthNone:
	default:
		err = cradle.Errorf(cradle.Invalid, "authentication type %.40q is not known", w.Type).
			WithHint("use %s, %s, %s or %s", iothub.SAS, iothub.SelfSigned, iothub.CertificateAuthority, iothub.AuthNone)
	}
	return a, primary, secondary, err
}

func authWire(a Auth, primary, secondary string) iothub.Authentication {
	w := iothub.Authentication{Type: a.Type, X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: primary, SecondaryThumbprint: secondary}}
	if a.Type == iothub.SAS {
		w.SymmetricKey.PrimaryKey = base64.StdEncoding.EncodeToString(a.Primary)
		w.SymmetricKey.SecondaryKey = base64.StdEncoding.EncodeToString(a.Secondary)
	}
	return w
}

// checkKey decodes a key; its errors do not repeat it. None is nil.
func checkKey(which, s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > base64.StdEncoding.EncodedLen(iothub.MaxKey) {
		return nil, cradle.Errorf(cradle.Invalid, "%s key is longer than %d bytes", which, iothub.MaxKey)
	}
	k, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s key is not base64", which)
	}
	if len(k) < iothub.MinKey || len(k) > iothub.MaxKey {
		return nil, cradle.Errorf(cradle.Invalid, "%s key has %d bytes, not %d to %d", which, len(k), iothub.MinKey, iothub.MaxKey)
	}
	return k, nil
}

// checkThumbprint returns the canonical form.
func checkThumbprint(which, s string) (string, error) {
	s = strings.ToLower(s)
	if len(s) != 0 && len(s) != 40 && len(s) != 64 {
		return "", badThumbprint(which)
	}
	if _, err := hex.DecodeString(s); err != nil {
		return "", badThumbprint(which)
	}
	return s, nil
}

func badThumbprint(which string) error {
	return cradle.Errorf(cradle.Invalid, "%s thumbprint must be 64 hex digits (SHA-256) or 40 (SHA-1)", which)
}

package order

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/jws"
)

// The roles of an order's signatures, typ of their protected headers.
const (
	TypeAccount = "cradle-order-v1"
	TypeOEM     = "cradle-order-countersignature-v1"
)

// Sign checks a complete order, fills in the account's key, and signs with it (ECDSA P-256): the JWS that goes to the OEM.
func Sign(o *Order, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("order key: %w", err)
	}
	o.AccountKey = der
	if err := o.Check(); err != nil {
		return nil, err
	}
	b, err := o.Encode()
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSize {
		return nil, cradle.Errorf(cradle.TooLarge, "order of %d bytes is over %d", len(b), MaxSize)
	}
	return jws.Sign(b, TypeAccount, key)
}

// Countersign adds the OEM's signature to an order that the account signed. Verify it before. A
// countersignature that the document already has is replaced.
func Countersign(doc []byte, oemKey crypto.Signer) ([]byte, error) {
	doc, err := jws.Trim(doc, 1)
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	return jws.Add(doc, TypeOEM, oemKey)
}

// Verify opens an order. account is the account's order key as the verifier knows it; oem is the OEM's, or
// nil when the countersignature is not asked for. Dates are not looked at: CheckUnit does that.
func Verify(doc []byte, account, oem *ecdsa.PublicKey) (*Order, error) {
	parties := []jws.Party{{Name: "the account", Type: TypeAccount, Key: account}}
	if oem != nil {
		if _, n, err := jws.Payload(doc); err == nil && n == 1 {
			return nil, cradle.Errorf(cradle.Unauthorized, "the order is not countersigned by the OEM").
				WithHint("the OEM runs: cradle-oem order accept FILE")
		}
		parties = append(parties, jws.Party{Name: "the OEM", Type: TypeOEM, Key: oem})
	}
	payload, err := jws.Verify(doc, oem != nil, parties...)
	if err != nil {
		return nil, cradle.Errorf(cradle.KindOf(err), "order: %w", err).
			WithHint("get the order again from the account; it must arrive unchanged")
	}
	o, err := decode(payload)
	if err != nil {
		return nil, err
	}
	if der, err := x509.MarshalPKIXPublicKey(account); err != nil || !bytes.Equal(der, o.AccountKey) {
		return nil, cradle.Errorf(cradle.Invalid, "the order names another account key than the one that signed it")
	}
	return o, nil
}

// Peek opens an order by the key that it carries itself: it shows that the order is whole, not who
// signed it. For an OEM's first order of an account, and for showing a file.
func Peek(doc []byte) (*Order, error) {
	payload, _, err := jws.Payload(doc)
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	o, err := decode(payload)
	if err != nil {
		return nil, err
	}
	key, err := ParsePublic(o.AccountKey)
	if err != nil {
		return nil, err
	}
	return Verify(doc, key, nil)
}

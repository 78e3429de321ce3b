package tpmkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
)

// What NV holds may be anything: parsing cuts, it does not invent.
func FuzzCertificate(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(append(bytes.Clone(der), 0xff, 0xff))
	f.Add(append(bytes.Clone(der), der...))
	f.Add(append([]byte{0x10, 0x01, 0x00, 0x01, 0x00}, der...))
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		cut, rest, err := cutCertificate(stripHeader(data))
		if err == nil && !bytes.HasSuffix(data, append(bytes.Clone(cut), rest...)) {
			t.Error("the parts are not the whole")
		}
		if all := cutAll(data); len(all) > maxChainCerts {
			t.Errorf("%d certificates", len(all))
		}
		pub, err := certificateKey(data)
		if err != nil {
			return
		}
		if cert, err := x509.ParseCertificate(data); err == nil && cert.PublicKey != nil {
			if k, ok := pub.(interface{ Equal(any) bool }); ok && !k.Equal(cert.PublicKey) {
				t.Error("another key than package x509 sees")
			}
		}
	})
}

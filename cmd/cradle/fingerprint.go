package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"strings"

	"github.com/cradle-iot/cradle"
)

// fingerprintOf reads a SHA-256 in hexadecimal, with or without colons, or takes that of the public key of a PEM file's
// first certificate.
func fingerprintOf(text string) (string, error) {
	plain := strings.ToLower(strings.ReplaceAll(text, ":", ""))
	if text == "" || len(plain) == 64 && strings.Trim(plain, "0123456789abcdef") == "" {
		return plain, nil
	}
	b, err := os.ReadFile(text)
	if err != nil {
		return "", cradle.Errorf(cradle.Invalid, "%.80q is neither a SHA-256 in hexadecimal nor a file", text)
	}
	if p, _ := pem.Decode(b); p != nil {
		b = p.Bytes
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return "", cradle.Errorf(cradle.Invalid, "%s: %v", text, err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

package status_test

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/status"
)

// TestMalformedRequests: each way in which a request may be none is refused by its own name; so is every part of a good
// one, whatever it is cut off at.
func TestMalformedRequests(t *testing.T) {
	src := newSource(t)
	good := certID(crypto.SHA1, src.issuers[0].Cert, "a1")
	octets := func(n int) []byte { return must(asn1.Marshal(bytes.Repeat([]byte{7}, n))) }
	number := func(n int64) []byte { return must(asn1.Marshal(big.NewInt(n))) }
	sha1 := seq(must(asn1.Marshal(hashOIDs[crypto.SHA1])), asn1.NullBytes)
	id := func(parts ...[]byte) []byte { return seq(seq(seq(seq(seq(parts...))))) }
	nonce := func(value []byte) []byte {
		return extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}, false, value)
	}
	with := func(extensions ...[]byte) []byte { return seq(seq(seq(seq(good)), explicit(2, seq(extensions...)))) }
	if _, err := status.ParseRequest(with(nonce(octets(32)))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		der  []byte
		want string
	}{
		{"nothing", nil, "not one SEQUENCE"},
		{"a SET", append([]byte{0x31}, request(nil, good)[1:]...), "not one SEQUENCE"},
		{"two requests", append(request(nil, good), request(nil, good)...), "not one SEQUENCE"},
		{"no TBSRequest", seq(), "no TBSRequest"},
		{"a number as TBSRequest", seq(number(1)), "no TBSRequest"},
		{"something behind the TBSRequest", seq(seq(seq(seq(good))), number(1)), "something follows the TBSRequest"},
		{"version 2", seq(seq(explicit(0, number(1)), seq(seq(good)))), "version is not v1"},
		{"no list", seq(seq(number(1))), "no requestList"},
		{"an empty list", seq(seq(seq())), "asks for no certificate"},
		{"no Request in the list", seq(seq(seq(number(1)))), "no Request"},
		{"no CertID", seq(seq(seq(seq(number(1))))), "no CertID"},
		{"something behind the CertID", seq(seq(seq(seq(good, number(1))))), "something follows the CertID"},
		{"something behind the list", seq(seq(seq(seq(good)), number(1))), "something follows the requestList"},
		{"no algorithm", id(number(1)), "no hashAlgorithm"},
		{"an algorithm that is no OID", id(seq(number(1))), "hashAlgorithm"},
		{"an algorithm with parameters", id(seq(must(asn1.Marshal(hashOIDs[crypto.SHA1])), number(1)), octets(20), octets(20), number(1)), "hashAlgorithm has parameters"},
		{"an algorithm with more than NULL", id(seq(must(asn1.Marshal(hashOIDs[crypto.SHA1])), asn1.NullBytes, asn1.NullBytes), octets(20), octets(20), number(1)), "hashAlgorithm has parameters"},
		{"MD5", id(seq(must(asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5})), asn1.NullBytes), octets(16), octets(16), number(1)), "is not SHA-1 or SHA-2"},
		{"a short hash of the name", id(sha1, octets(19), octets(20), number(1)), "has not 20 bytes"},
		{"a long hash of the key", id(sha1, octets(20), octets(32), number(1)), "has not 20 bytes"},
		{"a hash that is a number", id(sha1, number(1), octets(20), number(1)), "has not 20 bytes"},
		{"no serial number", id(sha1, octets(20), octets(20)), "serialNumber"},
		{"a serial number that is text", id(sha1, octets(20), octets(20), octets(4)), "serialNumber"},
		{"a long serial number", id(sha1, octets(20), octets(20), must(asn1.Marshal(new(big.Int).Lsh(big.NewInt(1), 8000)))), "serialNumber"},
		{"something behind the serial number", id(sha1, octets(20), octets(20), number(1), number(1)), "serialNumber"},
		{"two nonces", with(nonce(octets(32)), nonce(octets(32))), "two nonces"},
		{"an empty nonce", with(nonce(octets(0))), "the nonce has 0 bytes"},
		{"a long nonce", with(nonce(octets(129))), "the nonce has 129 bytes"},
		{"a bare nonce", with(nonce([]byte("0123456789abcdef"))), "the nonce is not an OCTET STRING"},
		{"a nonce and more", with(nonce(append(octets(16), 5, 0))), "the nonce is not an OCTET STRING"},
		{"a critical extension", with(extension(asn1.ObjectIdentifier{1, 2, 3}, true, octets(1))), "is not understood"},
		{"no extensions", seq(seq(seq(seq(good)), explicit(2, number(1)))), "extensions"},
		{"two lists of extensions", seq(seq(seq(seq(good)), explicit(2, seq(), seq()))), "extensions"},
		{"an extension that is none", with(number(1)), "an extension cannot be read"},
	} {
		_, err := status.ParseRequest(c.der)
		if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	many := make([][]byte, 17)
	for i := range many {
		many[i] = good
	}
	for name, der := range map[string][]byte{"17 certificates": request(nil, many...), "100,000 bytes": append(request(nil, good), make([]byte, 100_000)...)} {
		if _, err := status.ParseRequest(der); cradle.KindOf(err) != cradle.TooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
	whole := with(nonce(octets(32)))
	for n := range whole {
		if r, err := status.ParseRequest(whole[:n]); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("cut off at %d: %+v, %v", n, r, err)
		}
	}
}

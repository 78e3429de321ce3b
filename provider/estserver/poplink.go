package estserver

import (
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"

	"github.com/cradle-iot/cradle"
)

// oidChallengePassword is id-at-challengePassword of PKCS#9, whose DER is how it is looked for in a CSR.
var (
	oidChallengePassword    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidChallengePasswordDER = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07}
)

// checkPOPLinking verifies a challengePassword in the CSR, if there is one, against this TLS connection
// (RFC 7030 §3.5: then it MUST be verified). Its value is base64 of tls-unique; over TLS 1.3, where that is not
// defined, of tls-exporter (RFC 9266), as RFC 9148 has it for EST over CoAP.
func checkPOPLinking(csr []byte, state *tls.ConnectionState) error {
	if !bytes.Contains(csr, oidChallengePasswordDER) {
		return nil // also spares everybody else the parsing
	}
	password, ok := challengePassword(csr)
	if !ok {
		return nil // elsewhere in the CSR, or broken: the provider's to judge
	}
	binding := state.TLSUnique
	if state.Version >= tls.VersionTLS13 {
		var err error
		if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
			return err
		}
	}
	want := base64.StdEncoding.EncodeToString(binding)
	if len(binding) == 0 || subtle.ConstantTimeCompare(password, []byte(want)) != 1 {
		return cradle.Errorf(cradle.Invalid, "POP linking failed: the challengePassword in the CSR is not this TLS connection's binding").
			WithHint("leave the challengePassword out, or send base64 of tls-unique (TLS 1.2) or tls-exporter (TLS 1.3), RFC 7030 §3.5")
	}
	return nil
}

// challengePassword finds the attribute's value in CertificationRequestInfo.attributes (RFC 2986 §4.1).
func challengePassword(csr []byte) ([]byte, bool) {
	var req struct {
		Info struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes []asn1.RawValue `asn1:"tag:0,set,optional"`
		}
		Algorithm asn1.RawValue
		Signature asn1.RawValue
	}
	if _, err := asn1.Unmarshal(csr, &req); err != nil {
		return nil, false
	}
	for _, raw := range req.Info.Attributes {
		var a struct {
			Type   asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		}
		if _, err := asn1.Unmarshal(raw.FullBytes, &a); err != nil || !a.Type.Equal(oidChallengePassword) || len(a.Values) == 0 {
			continue
		}
		return a.Values[0].Bytes, true
	}
	return nil, false
}

package estserver

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// checkPOPLinking verifies a challengePassword in the CSR, if there is one, against this TLS connection
// (RFC 7030 §3.5: then it MUST be verified), and demands one where the endpoint does. Its value is base64 of
// tls-unique; over TLS 1.3, where that is not defined, of tls-exporter (RFC 9266), as RFC 9148 has it for EST over CoAP.
func checkPOPLinking(csr []byte, state *tls.ConnectionState, demanded bool) error {
	password, err := est.ChallengePassword(csr)
	if err != nil {
		return err
	}
	const how = "base64 of tls-unique (TLS 1.2) or tls-exporter (TLS 1.3), RFC 7030 §3.5"
	if password == nil {
		if demanded {
			return cradle.Errorf(cradle.Invalid, "POP linking failed: the CSR has no challengePassword, which this resource demands").
				WithHint("put into it %s", how)
		}
		return nil
	}
	binding := state.TLSUnique
	if state.Version >= tls.VersionTLS13 {
		if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
			return err
		}
	}
	want := base64.StdEncoding.EncodeToString(binding)
	if len(binding) == 0 || subtle.ConstantTimeCompare(password, []byte(want)) != 1 {
		return cradle.Errorf(cradle.Invalid, "POP linking failed: the challengePassword in the CSR is not this TLS connection's binding").
			WithHint("leave the challengePassword out, or send %s", how)
	}
	return nil
}

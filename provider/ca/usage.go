package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// keyUsages are the names of RFC 5280 §4.2.1.3.
var keyUsages = map[string]x509.KeyUsage{
	"digitalSignature": x509.KeyUsageDigitalSignature,
	"nonRepudiation":   x509.KeyUsageContentCommitment,
	"keyEncipherment":  x509.KeyUsageKeyEncipherment,
	"dataEncipherment": x509.KeyUsageDataEncipherment,
	"keyAgreement":     x509.KeyUsageKeyAgreement,
	"keyCertSign":      x509.KeyUsageCertSign,
	"cRLSign":          x509.KeyUsageCRLSign,
	"encipherOnly":     x509.KeyUsageEncipherOnly,
	"decipherOnly":     x509.KeyUsageDecipherOnly,
}

const caUsages = x509.KeyUsageCertSign | x509.KeyUsageCRLSign

// keyUsageOf says what a key's algorithm can be used for.
func keyUsageOf(pub crypto.PublicKey) x509.KeyUsage { return usageOfType(keyTypeOf(pub)) }

// usageOfType: RFC 3279 §2.3.1, RFC 8813 §3, RFC 8410 §5.
func usageOfType(t KeyType) x509.KeyUsage {
	const signs = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	switch {
	case strings.HasPrefix(string(t), "rsa-"):
		return signs | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	case strings.HasPrefix(string(t), "ec-"):
		return signs | x509.KeyUsageKeyAgreement | x509.KeyUsageEncipherOnly | x509.KeyUsageDecipherOnly
	}
	return signs
}

// keyUsage is the profile's, less what the key cannot do.
func (l *Leaf) keyUsage() x509.KeyUsage {
	var u x509.KeyUsage
	for _, n := range l.Rules.KeyUsage {
		u |= keyUsages[n]
	}
	return u & keyUsageOf(l.Public)
}

// extKeyUsages are the names of RFC 5280 §4.2.1.12 and RFC 9336, with the key usages that go with them.
var extKeyUsages = map[string]struct {
	id    asn1.ObjectIdentifier
	needs x509.KeyUsage // one of these
}{
	"serverAuth":      {[]int{1, 3, 6, 1, 5, 5, 7, 3, 1}, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement},
	"clientAuth":      {[]int{1, 3, 6, 1, 5, 5, 7, 3, 2}, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement},
	"codeSigning":     {[]int{1, 3, 6, 1, 5, 5, 7, 3, 3}, x509.KeyUsageDigitalSignature},
	"emailProtection": {[]int{1, 3, 6, 1, 5, 5, 7, 3, 4}, x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement},
	"ipsecIKE":        {[]int{1, 3, 6, 1, 5, 5, 7, 3, 17}, x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment},
	"documentSigning": {[]int{1, 3, 6, 1, 5, 5, 7, 3, 36}, x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment},
}

// reservedUsages would give a device powers over others.
var reservedUsages = map[string]string{
	"1.3.6.1.5.5.7.3.8":  "timeStamping is for the provider's time key",
	"1.3.6.1.5.5.7.3.9":  "OCSPSigning would let a device answer for the CA (RFC 6960 §4.2.2.2)",
	"1.3.6.1.5.5.7.3.27": "cmcCA would let a device stand for a CA (RFC 6402 §2.10)",
	"1.3.6.1.5.5.7.3.28": "cmcRA is of registration authorities: cradle account ra",
	"2.5.29.37.0":        "anyExtendedKeyUsage; leave the list empty for any use",
}

// extKeyUsage reads a name or an OID.
func extKeyUsage(s string) (asn1.ObjectIdentifier, error) {
	if u, ok := extKeyUsages[s]; ok {
		return u.id, nil
	}
	id, err := parseOID(s)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an OID nor one of %s", s, keysOf(extKeyUsages))
	}
	if why := reservedUsages[s]; why != "" {
		return nil, fmt.Errorf("%s", why)
	}
	return id, nil
}

// extKeyUsageName is the inverse of extKeyUsage.
func extKeyUsageName(id asn1.ObjectIdentifier) string {
	for n, u := range extKeyUsages {
		if u.id.Equal(id) {
			return n
		}
	}
	return id.String()
}

// extKeyUsage is the profile's with what was granted.
func (l *Leaf) extKeyUsage() ([]asn1.ObjectIdentifier, error) {
	var out []asn1.ObjectIdentifier
	for _, s := range slices.Concat(l.Rules.ExtendedKeyUsage, l.Usages) {
		id, err := extKeyUsage(s)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(out, id.Equal) {
			out = append(out, id)
		}
	}
	return out, nil
}

// parseOID reads a dotted OID whose arcs fit 31 bits: what the certificate library can write.
func parseOID(s string) (asn1.ObjectIdentifier, error) {
	var id asn1.ObjectIdentifier
	for arc := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(arc, 10, 31)
		if err != nil || arc != strconv.FormatUint(n, 10) {
			return nil, fmt.Errorf("%q is not an OID with arcs below 2^31", s)
		}
		id = append(id, int(n))
	}
	if len(id) < 2 || id[0] > 2 || id[0] < 2 && id[1] > 39 {
		return nil, fmt.Errorf("%q is not an OID", s)
	}
	return id, nil
}

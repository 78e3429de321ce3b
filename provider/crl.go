package provider

import (
	"crypto/x509"
	"path"
	"strconv"
	"strings"
)

// ShardOf returns the number of the CRL shard that a certificate's distribution point names (RFC 5280 §4.2.1.13), 0 for none.
func ShardOf(der []byte) int64 {
	cert, err := x509.ParseCertificate(der)
	if err != nil || len(cert.CRLDistributionPoints) == 0 {
		return 0
	}
	name, ok := strings.CutSuffix(path.Base(cert.CRLDistributionPoints[0]), ".crl")
	n, err := strconv.ParseInt(name, 10, 64)
	if !ok || err != nil || n < 1 {
		return 0
	}
	return n
}

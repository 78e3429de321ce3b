package hubserver_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
)

// issuer is a credential provider with one CA, which answers the same request with the same certificate.
type issuer struct {
	t  *testing.T
	ca *testca.Pair

	mu    sync.Mutex
	asked []string
	fail  error
	wait  chan struct{} // not nil: answers wait for it
	had   map[string][][]byte
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	return &issuer{t: t, ca: testca.New(t, testca.CA("registration CA"), nil), had: map[string][][]byte{}}
}

func (i *issuer) set(f func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func (i *issuer) calls() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string{}, i.asked...)
}

func (i *issuer) IssueByCSR(ctx context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) ([][]byte, error) {
	i.mu.Lock()
	wait, fail := i.wait, i.fail
	i.asked = append(i.asked, string(account)+"/"+policy+"/"+string(id))
	i.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if had := i.had[string(csr)]; had != nil {
		return had, nil
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	leaf := testca.Sign(i.t, &x509.Certificate{Subject: pkix.Name{Organization: []string{string(account)}, CommonName: string(id)},
		KeyUsage: x509.KeyUsageDigitalSignature}, i.ca, req.PublicKey)
	i.had[string(csr)] = [][]byte{leaf.Raw, i.ca.Cert.Raw}
	return i.had[string(csr)], nil
}

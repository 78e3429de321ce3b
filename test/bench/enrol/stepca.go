package enrol

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"
)

// stepCA is Smallstep's: a first certificate for a provisioner's token, later ones by /rekey over mutual TLS.
type stepCA struct {
	*peer
	provisioner *ecdsa.PrivateKey
}

// NewStepCA starts github.com/smallstep/certificates' server over its embedded database.
func NewStepCA(bin, dir string) (Server, error) {
	p, err := newPeer("step-ca", dir)
	if err != nil {
		return nil, err
	}
	s := &stepCA{peer: p}
	if s.provisioner, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	pub, err := s.provisioner.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	jwk := map[string]any{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "bench", "x": b64(pub[1:33]), "y": b64(pub[33:])}
	return s, p.start(dir, map[string]any{
		"root": "root.pem", "crt": "issuing.pem", "key": "ca.key", "address": p.addr, "dnsNames": []string{"localhost"},
		"logger": map[string]any{"format": "text"}, "db": map[string]any{"type": "badgerv2", "dataSource": "db"},
		"authority": map[string]any{"provisioners": []any{map[string]any{"type": "JWK", "name": "bench", "key": jwk}}},
	}, filepath.Join(bin, "step-ca"), "config.json")
}

// First implements Server: the token is enough.
func (s *stepCA) First(*Device) error { return nil }

// token is a provisioner's word for one certificate.
func (s *stepCA) token(name string) (string, error) {
	now := time.Now()
	b64 := base64.RawURLEncoding.EncodeToString
	claims, err := json.Marshal(map[string]any{"iss": "bench", "aud": "https://localhost/1.0/sign", "sub": name, "sans": []string{name},
		"iat": now.Unix(), "nbf": now.Unix() - 5, "exp": now.Unix() + 240, "jti": rand.Text()})
	if err != nil {
		return "", err
	}
	signed := b64([]byte(`{"alg":"ES256","kid":"bench","typ":"JWT"}`)) + "." + b64(claims)
	h := sha256.Sum256([]byte(signed))
	r, t, err := ecdsa.Sign(rand.Reader, s.provisioner, h[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	t.FillBytes(sig[32:])
	return signed + "." + b64(sig), nil
}

// Enroll implements Server.
func (s *stepCA) Enroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return s.post(ctx, hc, "/1.0/sign", map[string]string{"csr": csrPEM(r.CSR), "ott": r.Token})
}

// Reenroll implements Server.
func (s *stepCA) Reenroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return s.post(ctx, hc, "/1.0/rekey", map[string]string{"csr": csrPEM(r.CSR)})
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (s *stepCA) post(ctx context.Context, hc *http.Client, path string, v any) (*x509.Certificate, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://localhost"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var out struct {
		Crt string `json:"crt"`
	}
	if err := json.Unmarshal(body, &out); err != nil || resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("%s: %s %.200s", path, resp.Status, body)
	}
	block, _ := pem.Decode([]byte(out.Crt))
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// drain reads an answer to its end, so that its connection is kept.
func drain(resp *http.Response) error {
	defer resp.Body.Close()
	_, err := io.Copy(io.Discard, resp.Body)
	return err
}

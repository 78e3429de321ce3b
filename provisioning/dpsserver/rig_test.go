package dpsserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// server is the whole service behind a real TLS listener.
type server struct {
	t    *testing.T
	svc  *provisioning.Service
	hub  *provisioningtest.Hub
	feed *provisioningtest.Feed
	ca   *provisioningtest.CA
	http *httptest.Server
	log  *bytes.Buffer // refusals; read only while no request is under way
}

func newServer(t *testing.T, change func(*dpsserver.Config)) *server {
	t.Helper()
	return newServerWith(t, nil, change)
}

// newServerWith is newServer with another domain.
func newServerWith(t *testing.T, domain func(*provisioning.Config), change func(*dpsserver.Config)) *server {
	t.Helper()
	s := &server{t: t, hub: provisioningtest.NewHub(t), feed: provisioningtest.NewFeed(), ca: provisioningtest.NewCA(t, "acme", "acme operational"), log: new(bytes.Buffer)}
	store, err := provisioningdb.Open(t.Context(), t.TempDir()+"/p.db")
	if err != nil {
		t.Fatal(err)
	}
	pc := provisioning.Config{Store: store, Feed: s.feed, Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: s.hub}}}
	if domain != nil {
		domain(&pc)
	}
	s.svc, err = provisioning.New(t.Context(), pc)
	if err != nil {
		t.Fatal(err)
	}
	c := dpsserver.Config{Service: s.svc, Log: slog.New(slog.NewJSONHandler(s.log, nil))}
	if change != nil {
		change(&c)
	}
	s.http = httptest.NewUnstartedServer(dpsserver.New(c))
	s.http.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.http.StartTLS()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.svc.Run(ctx)
	}()
	t.Cleanup(func() {
		s.http.Close()
		cancel()
		<-done
		store.Close()
	})
	return s
}

// client presents certs, or nothing.
func (s *server) client(certs ...tls.Certificate) *http.Client {
	tr := s.http.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.Certificates = certs
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *server) service() *dps.Service {
	return &dps.Service{HTTP: s.client(), Conn: &sas.ConnectionString{
		HostName: strings.TrimPrefix(s.http.URL, "https://"), KeyName: dps.Policy, Key: s.svc.Identity().ServiceKey,
	}}
}

func (s *server) group(id string, ca *provisioningtest.CA) dps.EnrollmentGroup {
	return dps.EnrollmentGroup{EnrollmentGroupID: id, Terms: dps.Terms{ProvisioningStatus: "enabled"}, Attestation: dps.Attestation{
		Type: "x509", X509: &dps.X509Attestation{SigningCertificates: &dps.X509Certificates{Primary: &dps.X509Certificate{Certificate: dps.PEM(ca.Cert)}}},
	}}
}

func (s *server) enrol() *dps.EnrollmentGroup {
	s.t.Helper()
	g, err := s.service().PutGroup(s.t.Context(), s.group("acme-devices", s.ca))
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func (s *server) path(id string) string {
	return "/" + s.svc.Identity().IDScope + "/registrations/" + id
}

// call makes one request and returns the answer with its body read.
func (s *server) call(c *http.Client, method, path, body string, header ...string) (*http.Response, []byte) {
	s.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.http.URL+path, rd)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, b
}

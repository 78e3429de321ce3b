package device

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testca"
)

// TestTicket: the hub's first connection resumes the registration's session, once, and only with the same client
// certificate and towards a name of the server's certificate, which is judged again.
func TestTicket(t *testing.T) {
	server := selfSigned(t, "dps.example", "hub.example")
	client, other := selfSigned(t, "unit-1"), selfSigned(t, "unit-1")
	conf := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert}
	var judged []string
	config := func(host string, cert tls.Certificate) *tls.Config {
		return &tls.Config{ServerName: host, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				judged = append(judged, host)
				return s.PeerCertificates[0].VerifyHostname(host)
			},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	}
	// connect reports whether the session was resumed, and as whom the server knows the client.
	connect := func(c *tls.Config) (resumed bool, peer []byte) {
		t.Helper()
		a, b := net.Pipe()
		defer a.Close()
		type result struct {
			state tls.ConnectionState
			err   error
		}
		done := make(chan result, 1)
		go func() {
			s := tls.Server(b, conf)
			_, err := s.Write([]byte("x")) // behind the ticket
			done <- result{s.ConnectionState(), err}
			b.Close()
		}()
		cl := tls.Client(a, c)
		if _, err := io.ReadFull(cl, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		if cl.ConnectionState().DidResume != r.state.DidResume {
			t.Fatal("the ends disagree")
		}
		return r.state.DidResume, r.state.PeerCertificates[0].Raw
	}
	der := client.Certificate[0]
	var k ticket
	if resumed, _ := connect(k.use(config("hub.example", client), der)); resumed {
		t.Fatal("resumed before there was a session")
	}
	connect(k.keep(config("dps.example", client), der))
	judged = nil
	resumed, peer := connect(k.use(config("hub.example", client), der))
	if !resumed || string(peer) != string(der) {
		t.Fatalf("resumed %v, known by its certificate %v; want both", resumed, string(peer) == string(der))
	}
	if len(judged) != 1 {
		t.Error("the resumed connection's server was not judged")
	}
	if resumed, _ := connect(k.use(config("hub.example", client), der)); resumed {
		t.Error("a session was used twice")
	}
	connect(k.keep(config("dps.example", client), der))
	if resumed, peer := connect(k.use(config("hub.example", other), other.Certificate[0])); resumed || string(peer) == string(der) {
		t.Error("another certificate resumed the session")
	}
	connect(k.keep(config("dps.example", client), der))
	if c := k.use(config("elsewhere.example", client), der); c.ClientSessionCache != nil {
		t.Error("the session is offered to a server of another name")
	}
	connect(k.keep(config("dps.example", client), der))
	k.until = time.Now()
	if c := k.use(config("hub.example", client), der); c.ClientSessionCache != nil {
		t.Error("the session is offered after its time")
	}
}

func selfSigned(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	return testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names}, nil).TLS()
}

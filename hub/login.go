package hub

import (
	"crypto/sha256"
	"crypto/x509"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Login is what a device or module presents to prove itself.
type Login struct {
	Chain []*x509.Certificate // as the TLS client sent it, leaf first; empty: none
	Token string              // a SAS token; empty: none
	Host  string              // the name by which the device knows the hub, with or without port
}

// identity is what the registry has of who logs in.
type identity struct {
	id        cradle.DeviceID
	module    iothub.ModuleID
	auth      Auth
	primary   string // thumbprints
	secondary string
}

func (d *Device) identity() identity { return identity{d.ID, "", d.Auth, d.Primary, d.Secondary} }
func (m *Module) identity() identity { return identity{m.Device, m.ID, m.Auth, m.Primary, m.Secondary} }

// name is the common name of its certificates, and the client id of its connections.
func (i *identity) name() string {
	if i.module != "" {
		return string(i.id) + "/" + string(i.module)
	}
	return string(i.id)
}

// grant is what a login proved, and for how long.
type grant struct {
	by      string            // "certificate" or "SAS token"
	ends    time.Time         // the certificate's or token's end
	account cradle.AccountID  // of the certificate; empty with a token
	name    cradle.DeviceID   // the certificate's: by it the status feed knows who came
	cred    credential        // of the certificate
	sum     [32]byte          // SHA-256 of the certificate; zero with a token
	slot    int               // thumbprint that matched: 1 primary, 2 secondary, 0 none was needed
	key     [32]byte          // SHA-256 of the key that had signed the token
	policy  string            // whose key it was, when it was not the identity's own
	ca      *x509.Certificate // that vouches for the certificate
}

// judge decides whether a login proves the identity: a pure function. hosts are names of the hub beside the one
// in the login, cas those whose certificates it trusts. It does not know whether device or certificate were revoked.
func judge(who identity, l *Login, hosts []string, cas []*x509.Certificate, now time.Time) (grant, error) {
	switch who.auth.Type {
	case iothub.SAS:
		return judgeToken(who, l, hosts, now)
	case iothub.SelfSigned, iothub.CertificateAuthority:
		return judgeCertificate(who, l, cas, now)
	}
	return grant{}, refuse("authentication type %s admits nobody", who.auth.Type).
		WithHint("give the identity keys, thumbprints or a CA in the registry")
}

func judgeToken(who identity, l *Login, hosts []string, now time.Time) (grant, error) {
	if l.Token == "" {
		return grant{}, refuse("no SAS token").WithHint("the registry has symmetric keys for %s: log in with a SharedAccessSignature", who.name())
	}
	t, err := sas.Parse(l.Token)
	if err != nil {
		return grant{}, err
	}
	if t.KeyName != "" {
		return grant{}, refuse("SAS token names the policy %.100q", t.KeyName).WithHint("a device signs with its own key and names no policy")
	}
	if !namesDevice(t.Resource, who, append([]string{l.Host}, hosts...)) {
		return grant{}, refuse("SAS token is for %.200q, not for %s at %.100q", t.Resource, who.name(), l.Host)
	}
	g := grant{by: "SAS token", ends: t.Expiry}
	for _, k := range [][]byte{who.auth.Primary, who.auth.Secondary} {
		if len(k) == 0 || !t.Signed(k) { // an empty key would be anybody's
			continue
		}
		g.key = sha256.Sum256(k)
		return g, t.Verify(k, now)
	}
	return grant{}, refuse("SAS token is not signed with a key of %s", who.name()).WithHint("compare the device's key with the registry's")
}

// namesDevice reports whether a token's resource is {host}/devices/{id}[/modules/{module}] at one of the hosts, in any
// case, ports aside; ids may be percent-encoded once more, as some SDKs do.
func namesDevice(resource string, who identity, hosts []string) bool {
	host, path, ok := strings.Cut(resource, "/")
	if !ok {
		return false
	}
	want := "devices/" + string(who.id)
	if who.module != "" {
		want += "/modules/" + string(who.module)
	}
	decoded, err := url.PathUnescape(path)
	if !strings.EqualFold(path, want) && (err != nil || !strings.EqualFold(decoded, want)) {
		return false
	}
	for _, h := range hosts {
		if h != "" && strings.EqualFold(withoutPort(host), withoutPort(h)) {
			return true
		}
	}
	return false
}

func withoutPort(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

func judgeCertificate(who identity, l *Login, cas []*x509.Certificate, now time.Time) (grant, error) {
	if len(l.Chain) == 0 {
		return grant{}, refuse("no client certificate").WithHint("the device connects with its operational certificate")
	}
	leaf := l.Chain[0]
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return grant{}, refuse("certificate is valid from %s to %s, now is %s",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	g := grant{by: "certificate", ends: leaf.NotAfter, cred: credentialOf(leaf), sum: sha256.Sum256(leaf.Raw)}
	g.account, g.name = accountOf(leaf), cradle.DeviceID(leaf.Subject.CommonName)
	if who.auth.Type == iothub.SelfSigned {
		if g.slot = g.cred.slot(who.primary, who.secondary); g.slot == 0 {
			return grant{}, refuse("certificate %.16s… is not the device's", g.cred.sha256).
				WithHint("the registry knows %.16s… and %.16s…", who.primary, who.secondary)
		}
		return g, nil // whatever name it has: the registry means this very certificate
	}
	if leaf.Subject.CommonName != who.name() {
		return grant{}, refuse("certificate is for %.100q, not for device %.100q", leaf.Subject.CommonName, who.name())
	}
	if len(cas) == 0 {
		return grant{}, refuse("the hub trusts no CA yet").WithHint("register the CA with cradle hub ca add")
	}
	opt := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range cas {
		opt.Roots.AddCert(c)
	}
	for _, c := range l.Chain[1:min(len(l.Chain), maxChain)] {
		opt.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(opt)
	if err != nil {
		return grant{}, refuse("certificate does not lead to a CA that the hub trusts: %v", err).
			WithHint("the device must send its intermediates too; is its CA registered with cradle hub ca add?")
	}
	g.ca = chains[0][len(chains[0])-1]
	return g, nil
}

// maxChain bounds the certificates of a client that are looked at.
const maxChain = 8

// accountOf is the account that a certificate of ours names.
func accountOf(c *x509.Certificate) cradle.AccountID {
	if o := c.Subject.Organization; len(o) == 1 {
		return cradle.AccountID(o[0])
	}
	return ""
}

// lost says why what a session was granted does not hold any more for the identity as it is now; empty when it
// does.
func (g *grant) lost(now identity) string {
	switch now.auth.Type {
	case iothub.SelfSigned:
		if g.cred.slot(now.primary, now.secondary) == 0 {
			return "certificate was replaced in the registry"
		}
		return ""
	case iothub.SAS:
		if g.policy != "" {
			return ""
		}
		for _, k := range [][]byte{now.auth.Primary, now.auth.Secondary} {
			if len(k) > 0 && g.key == sha256.Sum256(k) {
				return ""
			}
		}
		return "keys were replaced in the registry"
	case iothub.CertificateAuthority:
		if g.ca != nil {
			return ""
		}
	}
	return "authentication type was changed in the registry"
}

package hub

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// cert makes a certificate signed by a parent (nil: by itself).
func cert(t *testing.T, cn string, parent *testca.Pair, change ...func(*x509.Certificate)) *testca.Pair {
	t.Helper()
	c := &x509.Certificate{Subject: pkix.Name{CommonName: cn, Organization: []string{"acme"}},
		NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	for _, f := range change {
		f(c)
	}
	return testca.New(t, c, parent)
}

func isCA(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
}

// TestLoginAttacks is the table of what must not get in, and of what must. Each row that is refused says why.
func TestLoginAttacks(t *testing.T) {
	const host = "hub-1.example.com"
	k1, k2, k3 := []byte(strings.Repeat("1", 32)), []byte(strings.Repeat("2", 32)), []byte(strings.Repeat("3", 32))
	sasDev := identity{id: "dev", auth: Auth{Type: iothub.SAS, Primary: k1, Secondary: k2}}
	sasMod := identity{id: "dev", module: "mod", auth: Auth{Type: iothub.SAS, Primary: k3, Secondary: k2}}
	token := func(resource string, key []byte, at time.Time) *Login {
		return &Login{Token: sas.Sign(resource, "", key, at), Host: host}
	}
	later := at.Add(time.Hour)
	own := cert(t, "dev", nil)
	other := cert(t, "dev", nil)
	root := cert(t, "root", nil, isCA)
	inter := cert(t, "inter", root, isCA)
	foreign := cert(t, "root", nil, isCA) // of the same name
	signed := cert(t, "dev", root)
	deep := cert(t, "dev", inter)
	chain := func(cs ...*testca.Pair) *Login {
		l := &Login{Host: host}
		for _, c := range cs {
			l.Chain = append(l.Chain, c.Cert)
		}
		return l
	}
	thumb := credentialOf(own.Cert)
	self := identity{id: "dev", auth: Auth{Type: iothub.SelfSigned}, primary: thumb.sha256}
	ca := identity{id: "dev", auth: Auth{Type: iothub.CertificateAuthority}}
	trusted := []*x509.Certificate{root.Cert}
	with := func(l *Login, fn func(*Login)) *Login { c := *l; fn(&c); return &c }

	for name, c := range map[string]struct {
		who  identity
		l    *Login
		cas  []*x509.Certificate
		want string // empty: admitted
	}{
		"primary key":                    {sasDev, token(host+"/devices/dev", k1, later), nil, ""},
		"secondary key":                  {sasDev, token(host+"/devices/dev", k2, later), nil, ""},
		"not encoded, as Node":           {sasDev, &Login{Token: "SharedAccessSignature " + raw(host+"/devices/dev", k1, later), Host: host}, nil, ""},
		"id encoded twice":               {identity{id: "a#b", auth: sasDev.auth}, token(host+"/devices/a%23b", k1, later), nil, ""},
		"host with a port":               {sasDev, with(token(host+":8883/devices/dev", k1, later), func(l *Login) { l.Host = host }), nil, ""},
		"the hub's own name":             {sasDev, token("hub-1/devices/dev", k1, later), nil, ""},
		"other case":                     {sasDev, token("HUB-1.Example.com/Devices/dev", k1, later), nil, ""},
		"a module":                       {sasMod, token(host+"/devices/dev/modules/mod", k3, later), nil, ""},
		"a certificate beside the token": {sasDev, with(token(host+"/devices/dev", k1, later), func(l *Login) { l.Chain = []*x509.Certificate{other.Cert} }), nil, ""},

		"nothing":                      {sasDev, &Login{Host: host}, nil, "no SAS token"},
		"a certificate for a key":      {sasDev, chain(own), nil, "no SAS token"},
		"rubbish":                      {sasDev, &Login{Token: "let me in", Host: host}, nil, "is not a SharedAccessSignature"},
		"wrong key":                    {sasDev, token(host+"/devices/dev", k3, later), nil, "not signed with a key of dev"},
		"a module's key":               {sasDev, token(host+"/devices/dev", sasMod.auth.Primary, later), nil, "not signed with a key of dev"},
		"expired":                      {sasDev, token(host+"/devices/dev", k1, at), nil, "SAS token expired"},
		"expired, secondary key":       {sasDev, token(host+"/devices/dev", k2, at.Add(-time.Second)), nil, "SAS token expired"},
		"expired, prolonged by hand":   {sasDev, with(token(host+"/devices/dev", k1, at), func(l *Login) { l.Token = strings.Replace(l.Token, "se=17", "se=27", 1) }), nil, "not signed"},
		"another device's token":       {sasDev, token(host+"/devices/other", k1, later), nil, "SAS token is for"},
		"a prefix of the id":           {sasDev, token(host+"/devices/de", k1, later), nil, "SAS token is for"},
		"a token for the whole hub":    {sasDev, token(host, k1, later), nil, "SAS token is for"},
		"a token for all devices":      {sasDev, token(host+"/devices", k1, later), nil, "SAS token is for"},
		"a token for a module":         {sasDev, token(host+"/devices/dev/modules/mod", k2, later), nil, "SAS token is for"},
		"the device's for its module":  {sasMod, token(host+"/devices/dev", k2, later), nil, "SAS token is for"},
		"another hub's token":          {sasDev, token("hub-2.example.com/devices/dev", k1, later), nil, "SAS token is for"},
		"another host's name":          {sasDev, with(token(host+"/devices/dev", k1, later), func(l *Login) { l.Host = "hub-2.example.com" }), nil, "SAS token is for"},
		"no host on either side":       {sasDev, with(token("/devices/dev", k1, later), func(l *Login) { l.Host = "" }), nil, "SAS token is for"},
		"a policy's token":             {sasDev, &Login{Token: sas.Sign(host+"/devices/dev", "iothubowner", k1, later), Host: host}, nil, "names the policy"},
		"no keys in the registry":      {identity{id: "dev", auth: Auth{Type: iothub.SAS}}, token(host+"/devices/dev", nil, later), nil, "not signed"},
		"an empty key in the registry": {identity{id: "dev", auth: Auth{Type: iothub.SAS, Primary: []byte{}}}, token(host+"/devices/dev", []byte{}, later), nil, "not signed"},
		"type none":                    {identity{id: "dev", auth: Auth{Type: iothub.AuthNone, Primary: k1}}, token(host+"/devices/dev", k1, later), nil, "admits nobody"},
		"no type":                      {identity{id: "dev", primary: thumb.sha256}, chain(own), nil, "admits nobody"},

		"thumbprint":                      {self, chain(own), nil, ""},
		"secondary thumbprint, SHA-1":     {identity{id: "dev", auth: self.auth, secondary: thumb.sha1}, chain(own), nil, ""},
		"no certificate":                  {self, &Login{Host: host}, nil, "no client certificate"},
		"a token for a thumbprint":        {identity{id: "dev", auth: Auth{Type: iothub.SelfSigned, Primary: k1}}, token(host+"/devices/dev", k1, later), nil, "no client certificate"},
		"another certificate":             {self, chain(other), nil, "is not the device's"},
		"no thumbprints":                  {identity{id: "dev", auth: self.auth}, chain(own), nil, "is not the device's"},
		"its certificate as second":       {self, chain(other, own), nil, "is not the device's"},
		"a device's for a CA's module":    {identity{id: "dev", module: "mod", auth: ca.auth}, chain(signed), trusted, `not for device "dev/mod"`},
		"thumbprint under another CN":     {identity{id: "dev2", auth: self.auth, primary: thumb.sha256}, chain(own), nil, ""},
		"signed by a CA, for thumbprints": {self, chain(signed), trusted, "is not the device's"},

		"CA":                               {ca, chain(signed), trusted, ""},
		"CA and intermediate":              {ca, chain(deep, inter), trusted, ""},
		"an intermediate as CA":            {ca, chain(deep), []*x509.Certificate{inter.Cert}, ""},
		"no CA yet":                        {ca, chain(signed), nil, "trusts no CA"},
		"an incomplete chain":              {ca, chain(deep), trusted, "does not lead to a CA"},
		"a CA of the same name":            {ca, chain(cert(t, "dev", foreign)), trusted, "does not lead to a CA"},
		"a CA that it brings along":        {ca, chain(cert(t, "dev", foreign), foreign), trusted, "does not lead to a CA"},
		"self-signed":                      {ca, chain(own), trusted, "does not lead to a CA"},
		"signed by a device":               {ca, chain(cert(t, "dev", signed), signed), trusted, "does not lead to a CA"},
		"another device's, of the CA":      {ca, chain(cert(t, "other", root)), trusted, `certificate is for "other"`},
		"for servers only":                 {ca, chain(cert(t, "dev", root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), trusted, "does not lead to a CA"},
		"expired certificate":              {ca, chain(cert(t, "dev", root, func(c *x509.Certificate) { c.NotAfter = at.Add(-time.Second) })), trusted, "certificate is valid from"},
		"early certificate":                {ca, chain(cert(t, "dev", root, func(c *x509.Certificate) { c.NotBefore = at.Add(time.Second) })), trusted, "certificate is valid from"},
		"an expired intermediate":          {ca, expiredInter(t, root), trusted, "does not lead to a CA"},
		"a token for a CA's device":        {identity{id: "dev", auth: Auth{Type: iothub.CertificateAuthority, Primary: k1}}, token(host+"/devices/dev", k1, later), trusted, "no client certificate"},
		"a chain that is far too long":     {ca, chain(append([]*testca.Pair{deep}, many(root, inter)...)...), trusted, "does not lead to a CA"},
		"the CA's own certificate as leaf": {identity{id: "root", auth: ca.auth}, chain(foreign), trusted, "does not lead to a CA"},
	} {
		g, err := judge(c.who, c.l, []string{"hub-1"}, c.cas, at)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case c.want == "" && (!g.ends.After(at) || g.by == ""):
			t.Errorf("%s: granted without an end: %+v", name, g)
		case c.want == "" && g.lost(c.who) != "":
			t.Errorf("%s: granted, and lost at once: %s", name, g.lost(c.who))
		case c.want != "" && (cradle.KindOf(err) != cradle.Unauthorized || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	// What was granted does not hold for the entry when its credential has gone.
	g, _ := judge(sasDev, token(host+"/devices/dev", k1, later), nil, nil, at)
	for name, c := range map[string]struct {
		now  identity
		lost bool
	}{
		"keys swapped":   {identity{id: "dev", auth: Auth{Type: iothub.SAS, Primary: k2, Secondary: k1}}, false},
		"other keys":     {identity{id: "dev", auth: Auth{Type: iothub.SAS, Primary: k2, Secondary: k3}}, true},
		"type changed":   {identity{id: "dev", auth: Auth{Type: iothub.SelfSigned}}, true},
		"CA":             {ca, true},
		"no type at all": {identity{id: "dev"}, true},
	} {
		if got := g.lost(c.now) != ""; got != c.lost {
			t.Errorf("%s: lost %v", name, got)
		}
	}
}

// raw signs over the resource as it is, as Node's provisioning client does.
func raw(resource string, key []byte, at time.Time) string {
	se := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(resource + "\n" + se))
	return "sr=" + resource + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil))) + "&se=" + se
}

func many(root, c *testca.Pair) []*testca.Pair {
	var out []*testca.Pair
	for range maxChain {
		out = append(out, root)
	}
	return append(out, c)
}

func expiredInter(t *testing.T, root *testca.Pair) *Login {
	old := cert(t, "old", root, isCA, func(c *x509.Certificate) { c.NotAfter = at.Add(-time.Second) })
	return &Login{Chain: []*x509.Certificate{cert(t, "dev", old).Cert, old.Cert}}
}

// FuzzResource: only the device's own resource names it, whatever a token says.
func FuzzResource(f *testing.F) {
	f.Add("hub-1/devices/dev")
	f.Add("hub-1/devices/dev/modules/mod")
	f.Add("hub-1:8883/devices/d%65v")
	f.Fuzz(func(t *testing.T, resource string) {
		if !namesDevice(resource, identity{id: "dev"}, []string{"hub-1", ""}) {
			return
		}
		host, path, _ := strings.Cut(strings.ToLower(resource), "/")
		if h, _, _ := strings.Cut(host, ":"); h != "hub-1" && host != "[hub-1]" || !strings.HasPrefix(path, "d") && !strings.HasPrefix(path, "%") || namesDevice(resource, identity{id: "dev", module: "mod"}, []string{"hub-1"}) {
			t.Errorf("%q is taken for dev", resource)
		}
	})
}

package adminserver

import (
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

// caRoutes are an account's certification authorities.
func (s *Server) caRoutes() {
	handle(s, op{pattern: "GET /accounts/{account}/cas", does: "An account's CAs, active and superseded, and keys that wait for a certificate.", need: view, scope: named},
		func(c *call, _ none) ([]admin.CA, error) {
			cas, keys, err := s.Provider.CAs(c.ctx(), c.account())
			if err != nil {
				return nil, err
			}
			out := make([]admin.CA, 0, len(cas)+len(keys))
			for i := range cas {
				out = append(out, caMessage(&cas[i]))
			}
			for i := range keys {
				out = append(out, keyMessage(&keys[i]))
			}
			return out, nil
		})
	handle(s, op{pattern: "POST /accounts/{account}/cas/csr", does: "The request by which an external CA is asked to certify a CA of the account.", need: own, scope: named},
		func(c *call, in admin.CARequest) (out admin.CASigningRequest, err error) {
			der, err := s.Provider.CASigningRequest(c.ctx(), c.account(), provider.AuthorityKind(in.Kind), in.OEM, in.Class, in.NewKey)
			if err != nil {
				return out, err
			}
			return admin.CASigningRequest{CARole: in.CARole, PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}, nil
		})
	handle(s, op{pattern: "POST /accounts/{account}/cas/install", does: "Put certificates in place that an external CA signed for CAs of the account.", need: own, scope: named}, s.installCAs)
	handle(s, op{pattern: "POST /accounts/{account}/cas/roll", does: "Give a CA of the account a new key.", need: own, scope: named},
		func(c *call, in admin.CARole) (out admin.ChangedCAs, err error) {
			a, err := s.Provider.RollCA(c.ctx(), c.account(), provider.AuthorityKind(in.Kind), in.OEM, in.Class)
			if err != nil {
				return out, err
			}
			out.CAs = []admin.CA{caMessage(a)}
			switch a.Kind {
			case provider.OperationalCA:
				out.Warnings = []string{"register the new CA at every provisioning service, beside the old one: cradle attestation register --account " + string(a.Account)}
			case provider.RootCA:
				out.Warnings = []string{"the issuing CAs are below the old root until each is rolled as well; orders made from now on hold the new root as anchor"}
			case provider.IDevIDCA:
				out.Warnings = []string{"lines that accepted their order before hold the old CA in the units' chains: have them accept the order again"}
			}
			return out, nil
		})
	handle(s, op{pattern: "POST /accounts/{account}/cas/cross", does: "Cross-sign the account's root of a class with those before it.", need: own, scope: named},
		func(c *call, in admin.CrossRoots) (out admin.ChangedCAs, err error) {
			crosses, err := s.Provider.CrossRoots(c.ctx(), c.account(), in.Class)
			for _, der := range crosses {
				out.Crosses = append(out.Crosses, admin.PEM(der))
			}
			return out, err
		})
}

func (s *Server) installCAs(c *call, in admin.InstallCAs) (out admin.ChangedCAs, err error) {
	var certs []*x509.Certificate
	for rest := []byte(in.PEM); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			return out, cradle.Errorf(cradle.Invalid, "the files hold a PEM block %q; only CERTIFICATE is wanted", b.Type)
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return out, cradle.Errorf(cradle.Invalid, "certificate %d: %v", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 || len(certs) > 100 {
		return out, cradle.Errorf(cradle.Invalid, "there are %d certificates; 1 to 100 are expected", len(certs)).WithHint("give PEM files: the CA's certificate, and all above it")
	}
	done, err := s.Provider.InstallCAs(c.ctx(), c.account(), certs)
	if err != nil {
		return out, err
	}
	out.Warnings = done.Warnings
	for i := range done.CAs {
		out.CAs = append(out.CAs, caMessage(&done.CAs[i]))
	}
	for _, der := range done.Crossed {
		out.Crosses = append(out.Crosses, admin.PEM(der))
	}
	return out, nil
}

func pems(ders [][]byte) string {
	var b strings.Builder
	for _, der := range ders {
		b.WriteString(admin.PEM(der))
	}
	return b.String()
}

func caMessage(a *provider.Authority) admin.CA {
	store, _, _ := strings.Cut(a.Key.Ref, ":")
	out := admin.CA{Kind: string(a.Kind), Class: a.Class, OEM: a.OEM, State: string(a.State), Store: store, Fingerprint: a.Digest(),
		PEM: admin.PEM(a.Cert), Chain: pems(a.Chain), Crosses: pems(a.Cross)}
	if c, err := x509.ParseCertificate(a.Cert); err == nil {
		out.Name, out.Algorithm, out.NotAfter = c.Subject.CommonName, string(keystore.AlgorithmOf(c.PublicKey)), &c.NotAfter
	}
	return out
}

func keyMessage(k *provider.PendingKey) admin.CA {
	store, _, _ := strings.Cut(k.Key.Ref, ":")
	out := admin.CA{Kind: string(k.Kind), Class: k.Class, OEM: k.OEM, State: "waiting", Name: k.CommonName, Store: store}
	if pub, err := x509.ParsePKIXPublicKey(k.SPKI); err == nil {
		out.Algorithm = string(keystore.AlgorithmOf(pub))
	}
	return out
}

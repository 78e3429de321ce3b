package oem_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
)

// fakeProvider stands for the provider on the other end of the line's HTTP. It keeps the contract
// that the line depends on: it verifies what the line sends (order, challenge, activation, binding), and gives
// a unit the same certificate again.
type fakeProvider struct {
	t      *testing.T
	srv    *httptest.Server
	root   *authority // the account's
	idevid *authority
	station,
	services *authority
	oem     order.OEMPublic
	account *ecdsa.PrivateKey

	mu         sync.Mutex
	challenges map[string]*challenge
	units      map[string]string // serial -> EK digest, and the other way round
	certs      map[string][]byte // profile + serial -> DER
	issued     int
	refuse     func(path string) *cradle.Error // nil: as it should be
	lots       map[cradle.LotID]string         // -> report's bytes
	lotState   string
	answer     func(*order.Accepted)              // changes the answer to an order; nil: as it should be
	wrong      func(*x509.Certificate) *authority // changes what is issued; nil: as it should be
}

type challenge struct {
	claim  evidence.Claim
	label  string
	peer   []byte
	secret []byte
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serialNumber = struct {
	sync.Mutex
	n int64
}{}

func issue(t testing.TB, tmpl *x509.Certificate, pub any, by *authority) []byte {
	t.Helper()
	serialNumber.Lock()
	serialNumber.n++
	tmpl.SerialNumber = big.NewInt(1000 + serialNumber.n)
	serialNumber.Unlock()
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	}
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, pub, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newAuthority(t testing.TB, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{Subject: pkix.Name{Organization: []string{"acme"}, CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	a := &authority{key: key}
	if by == nil {
		by = &authority{tmpl, key}
	}
	if a.cert, err = x509.ParseCertificate(issue(t, tmpl, &key.PublicKey, by)); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

func newProvider(t *testing.T) *fakeProvider {
	p := &fakeProvider{t: t, root: newAuthority(t, "root", nil), services: newAuthority(t, "services", nil), station: newAuthority(t, "stations", nil),
		challenges: map[string]*challenge{}, units: map[string]string{}, certs: map[string][]byte{}, lots: map[cradle.LotID]string{}, lotState: order.LotAccepted}
	p.idevid = newAuthority(t, "IDevID CA", p.root)
	var err error
	if p.account, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}}, &tlsKey.PublicKey, p.services)
	p.srv = httptest.NewUnstartedServer(p)
	p.srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: tlsKey}}}
	p.srv.StartTLS()
	t.Cleanup(p.srv.Close)
	return p
}

func (p *fakeProvider) url() string {
	return strings.Replace(p.srv.URL, "127.0.0.1", "localhost", 1)
}

// order is a signed order for simulators at this provider.
func (p *fakeProvider) order(id cradle.OrderID, change func(*order.Order)) (*order.Order, []byte) {
	p.t.Helper()
	o := &order.Order{ID: id, Account: "acme", OEM: "makers", Model: "Meter", Quantity: 5, SerialPrefix: "SN", SerialFirst: "01", SerialLast: "09",
		Tiers: []cradle.Tier{cradle.Simulator}, TPMMakers: []cradle.MakerID{"demo"}, ProviderURL: p.url(),
		ServicesAnchors: p.services.pem(), AccountAnchors: p.root.pem(), ProvisioningEndpoint: "https://localhost:8443", IDScope: "0ne1", AutoAccept: true}
	o.Complete(time.Now().Add(-time.Minute))
	if change != nil {
		change(o)
	}
	doc, err := order.Sign(o, p.account)
	if err != nil {
		p.t.Fatal(err)
	}
	return o, doc
}

func (p *fakeProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	if p.refuse != nil {
		if e := p.refuse(r.URL.Path); e != nil {
			p.fail(w, r, e)
			return
		}
	}
	var err *cradle.Error
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/accept"):
		err = p.accept(w, body)
	case strings.HasSuffix(path, "/lots"):
		err = p.lot(w, body)
	case strings.HasSuffix(path, "/nonce"):
		err = p.nonce(w, r, body)
	case strings.HasSuffix(path, "/simpleenroll"):
		err = p.enrol(w, r, body)
	default:
		err = cradle.Errorf(cradle.NotFound, "no %s", path)
	}
	if err != nil {
		p.fail(w, r, err)
	}
}

func (p *fakeProvider) fail(w http.ResponseWriter, r *http.Request, e *cradle.Error) {
	status := map[cradle.Kind]int{cradle.Busy: 503, cradle.Forbidden: 403, cradle.Unauthorized: 401, cradle.NotFound: 404, cradle.Conflict: 409}[e.Kind]
	if status == 0 {
		status = 400
	}
	if strings.HasPrefix(r.URL.Path, order.PathPrefix) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"kind": e.Kind.String(), "detail": e.Detail, "hint": e.Hint})
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	io.WriteString(w, e.Detail+"\n"+e.Hint)
}

func (p *fakeProvider) accept(w http.ResponseWriter, body []byte) *cradle.Error {
	var in order.AcceptRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	o, err := order.Verify(in.Order, &p.account.PublicKey, p.oem.Order)
	if err != nil {
		return cradle.Errorf(cradle.KindOf(err), "%v", err)
	}
	csr, err := x509.ParseCertificateRequest(in.StationCSR)
	if err != nil || csr.CheckSignature() != nil {
		return cradle.Errorf(cradle.Invalid, "station CSR")
	}
	der := issue(p.t, &x509.Certificate{Subject: pkix.Name{CommonName: string(o.ID)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, csr.PublicKey, p.station)
	base := p.url() + est.WellKnown
	a := order.Accepted{Order: o.ID, StationCertificate: der, StationIssuer: p.station.cert.Raw,
		IAKURL: base + "acme-iak", IDevIDURL: base + "acme-idevid", IDevIDChain: [][]byte{p.idevid.cert.Raw}, AccountAnchors: [][]byte{p.root.cert.Raw}}
	if p.answer != nil {
		p.answer(&a)
	}
	json.NewEncoder(w).Encode(a)
	return nil
}

func (p *fakeProvider) lot(w http.ResponseWriter, body []byte) *cradle.Error {
	var in order.LotRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	r, err := custody.VerifyReport(in.Report, p.oem.Lot)
	if err != nil {
		return cradle.Errorf(cradle.KindOf(err), "%v", err)
	}
	if _, err := custody.VerifyGiven(in.Custody, p.oem.Order); err != nil {
		return cradle.Errorf(cradle.KindOf(err), "%v", err)
	}
	for _, u := range r.Units { // what the report says of a unit is what was issued to it
		if p.units[u.Serial] != u.EK || digest(p.certs["idevid"+u.Serial]) != u.IDevID || digest(p.certs["iak"+u.Serial]) != u.IAK {
			p.t.Errorf("report is wrong about unit %+v", u)
		}
	}
	if old, ok := p.lots[r.Lot]; ok && old != string(in.Report) {
		p.t.Errorf("lot %s was handed in with another report", r.Lot)
	}
	p.lots[r.Lot] = string(in.Report)
	json.NewEncoder(w).Encode(order.LotAnswer{Lot: r.Lot, State: p.lotState})
	return nil
}

func label(path string) string {
	l, _, _ := strings.Cut(strings.TrimPrefix(path, est.WellKnown), "/")
	return l
}

func (p *fakeProvider) nonce(w http.ResponseWriter, r *http.Request, body []byte) *cradle.Error {
	if len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].CheckSignatureFrom(p.station.cert) != nil {
		return cradle.Errorf(cradle.Unauthorized, "no station certificate")
	}
	req, err := est.ParseNonceRequest(body)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	claim, err := evidence.ParseClaim(req.ReqInfo)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	ch := &challenge{claim: claim, label: label(r.URL.Path), peer: r.TLS.PeerCertificates[0].Raw, secret: make([]byte, 32)}
	rand.Read(ch.secret)
	id := make([]byte, 16)
	rand.Read(id)
	p.challenges[string(id)] = ch

	cert, err := x509.ParseCertificate(claim.EKCert)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	blob, secret := p.seal(cert, claim.AttestationKey, ch.secret)
	info, err := json.Marshal(evidence.Challenge{Challenge: id, CredentialBlob: blob, EncryptedSecret: secret})
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	w.Header().Set("Content-Type", est.TypeNonce)
	json.NewEncoder(w).Encode(est.NonceResponse{Nonce: id, Expiry: 300, Type: cradle.OIDActivation.String(), RespInfo: info})
	return nil
}

// seal is TPM2_MakeCredential for a P-256 endorsement key.
func (p *fakeProvider) seal(ek *x509.Certificate, iak, secret []byte) (blob, encrypted []byte) {
	pub := ek.PublicKey.(*ecdsa.PublicKey)
	area := evidence.EKTemplateP256
	point := tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: pub.X.FillBytes(make([]byte, 32))}, Y: tpm2.TPM2BECCParameter{Buffer: pub.Y.FillBytes(make([]byte, 32))}}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &point)
	key, err := tpm2.ImportEncapsulationKey(&area)
	if err != nil {
		p.t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](iak)
	if err != nil {
		p.t.Fatal(err)
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		p.t.Fatal(err)
	}
	blob, encrypted, err = tpm2.CreateCredential(rand.Reader, key, name.Buffer, secret)
	if err != nil {
		p.t.Fatal(err)
	}
	return blob, encrypted
}

func (p *fakeProvider) enrol(w http.ResponseWriter, r *http.Request, body []byte) *cradle.Error {
	der, err := est.DecodeBody(body)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	csr, err := evidence.ParseCSR(der)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	if err := csr.Request.CheckSignature(); err != nil || csr.Bundle == nil || csr.Bundle.Certify == nil {
		return cradle.Errorf(cradle.Invalid, "CSR without signature or evidence: %v", err)
	}
	ch := p.challenges[string(csr.Bundle.Challenge)]
	if ch == nil || ch.label != label(r.URL.Path) || !bytes.Equal(ch.peer, r.TLS.PeerCertificates[0].Raw) {
		return cradle.Errorf(cradle.Forbidden, "no such challenge")
	}
	delete(p.challenges, string(csr.Bundle.Challenge))
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](csr.Bundle.Certify.Attest)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	want := evidence.Binding{Challenge: csr.Bundle.Challenge, Account: "acme", Label: ch.label, Secret: ch.secret, AuthCert: ch.peer, SPKI: csr.SPKI}.ExtraData()
	if !bytes.Equal(attest.ExtraData.Buffer, want[:]) {
		return cradle.Errorf(cradle.Forbidden, "the evidence is not bound to this request")
	}
	cert, err := x509.ParseCertificate(ch.claim.EKCert)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	ek, serial := digest(cert.RawSubjectPublicKeyInfo), ch.claim.Serial
	if old, ok := p.units[serial]; ok && old != ek {
		return cradle.Errorf(cradle.Forbidden, "serial is another unit's")
	}
	if old, ok := p.units[ek]; ok && old != serial {
		return cradle.Errorf(cradle.Forbidden, "EK is another unit's")
	}
	p.units[serial], p.units[ek] = ek, serial
	id := strings.TrimPrefix(ch.label, "acme-") + serial
	if p.certs[id] == nil {
		tmpl, by := &x509.Certificate{Subject: pkix.Name{Organization: []string{"acme"}, CommonName: "acme-" + strings.ToLower(serial)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, p.idevid
		if p.wrong != nil {
			by = p.wrong(tmpl)
		}
		p.certs[id] = issue(p.t, tmpl, csr.Request.PublicKey, by)
		p.issued++
	}
	p7, err := est.EncodeCerts(p.certs[id])
	if err != nil {
		p.t.Fatal(err)
	}
	w.Header().Set("Content-Type", est.TypeCertsOnly)
	w.Write(est.EncodeBody(p7, true))
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

package system_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

// TestRevokeBySelector: a device that is suspended by any selector is refused at EST, provisioning and hub soon after the
// command, and works again after the release; one outside of the set is never refused; a distrusted maker's devices are
// listed first and revoked on confirmation.
func TestRevokeBySelector(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	testenv.Require(t, "openssl")
	t.Run("sqlite", func(t *testing.T) { revokeBySelector(t, world.Options{}) })
	t.Run("postgres", func(t *testing.T) { revokeBySelector(t, world.Options{DB: testenv.Postgres(t)}) })
}

func revokeBySelector(t *testing.T, o world.Options) {
	o.OperationalValidity = time.Hour
	w := world.New(t, o)
	w.Acts()
	victim, other := w.Make(1)[0], w.Make(1)[0]
	for _, u := range []*world.Unit{victim, other} {
		p := w.Agent([]*world.Unit{u})
		w.AwaitConnected(time.Minute, u)
		if code := p.Stop(); code != 0 {
			t.Fatalf("the agent of %s ended with %d: %s", u.ID, code, p.Log())
		}
	}
	v, b := w.Client(victim), w.Client(other)
	d := world.Decode[admin.Device](t, w.MustCradle("device", "show", string(victim.ID), "--account", world.Account))
	makers := world.Decode[admin.TPMMakers](t, w.MustCradle("tpm-maker", "list"))
	issuer := makers.Makers[0].Anchors[0].Fingerprint
	serial := fmt.Sprintf("%x", v.Certificate(v.Active()).Leaf.SerialNumber)
	for _, s := range []struct {
		flag, value string
		all         bool // the other device is in the set too
	}{
		{"serial", serial, false}, {"device", string(victim.ID), false}, {"lot", string(d.Lot), false}, {"order", world.Order, true},
		{"oem", world.OEM, true}, {"maker", world.Maker, true}, {"ek-issuer", issuer, true},
	} {
		t.Run(s.flag, func(t *testing.T) {
			set := s.flag != "serial" && s.flag != "device"
			if set {
				r := world.Decode[admin.Revocation](t, w.MustCradle("revoke", "--account", world.Account, "--"+s.flag, s.value, "--reason", "certificateHold"))
				if r.State != "preview" || r.Total == 0 {
					t.Errorf("without --yes: %+v", r)
				}
				works(w, v)
			}
			began := time.Now()
			r := world.Decode[admin.Revocation](t, w.MustCradle("revoke", "--account", world.Account, "--"+s.flag, s.value, "--reason", "certificateHold", "--yes"))
			if r.State != "done" || r.Changed == 0 || r.EST == nil || r.Provisioning == nil || r.Hub == nil {
				t.Errorf("%+v", r)
			}
			stopped(w, v)
			t.Logf("EST, provisioning and hub refused it %v after the command", time.Since(began))
			if s.all {
				stopped(w, b)
			} else {
				works(w, b)
			}
			w.MustCradle("release", "--account", world.Account, "--"+s.flag, s.value, "--yes")
			works(w, v)
			works(w, b)
		})
	}
	list := world.Decode[admin.Concern](t, w.MustCradle("tpm-maker", "distrust", "--certificate", w.Path("tpm-maker.pem"), "--reason", "root broken"))
	if list.Confirmed || len(list.Devices) != 2 || len(list.Jobs) != 0 {
		t.Errorf("the list of a distrust: %+v", list)
	}
	works(w, v)
	began := time.Now()
	w.MustCradle("tpm-maker", "distrust", "--certificate", w.Path("tpm-maker.pem"), "--reason", "root broken", "--yes")
	stopped(w, v)
	t.Logf("refused %v after the distrust", time.Since(began))
	if r := w.Cradle("release", "--account", world.Account, "--device", string(victim.ID)); r.Code == 0 {
		t.Error("a revoked device was released")
	}
	late := w.NewTPM("late", world.GoodTPM)
	if r := w.Run("cradle-oem", w.PersonaliseArgs(world.Serial(90), late.Socket())...); r.Code == 0 {
		t.Error("a device with a TPM of the distrusted maker was made")
	}
	w.Audit()
}

// works: the device is admitted everywhere, at the latest after the outbox has told the hub.
func works(w *world.World, c *world.Client) {
	w.T.Helper()
	w.Wait("the device to be admitted", time.Minute, func() (bool, string) {
		for name, err := range calls(w, c) {
			if err != nil {
				return false, name + ": " + err.Error()
			}
		}
		return true, ""
	})
}

// stopped: the device is refused everywhere soon.
func stopped(w *world.World, c *world.Client) {
	w.T.Helper()
	w.Wait("the device to be refused", time.Minute, func() (bool, string) {
		for name, err := range calls(w, c) {
			if err == nil {
				return false, name + " admits it"
			}
		}
		return true, ""
	})
}

func calls(w *world.World, c *world.Client) map[string]error {
	w.T.Helper()
	ctx := w.T.Context()
	active := c.Certificate(c.Active())
	key, err := c.TPM.EnsureLDevID(ctx)
	if err != nil {
		w.T.Fatal(err)
	}
	_, est := c.Request(ctx, cradle.Operational, active, key)
	return map[string]error{"EST": est, "provisioning": c.Register(ctx, active), "hub": c.Connect(ctx, active)}
}

// TestStatusListener: CRLs and OCSP over plain HTTP, at the URL that certificates carry.
func TestStatusListener(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	testenv.Require(t, "openssl")
	addr := testenv.Address(t)
	w := world.New(t, world.Options{Serve: []string{"--status-listen", addr, "--status-url", "http://" + addr + "/"}})
	w.Acts()
	u := w.Make(1)[0]
	b, err := os.ReadFile(filepath.Join(u.Dir, "idevid.pem"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, iss := split(t, b)
	if leaf.CRLDistributionPoints[0][:len("http://"+addr+"/crl/")] != "http://"+addr+"/crl/" {
		t.Fatalf("the certificate points to %v", leaf.CRLDistributionPoints)
	}
	for url, kind := range map[string]string{leaf.CRLDistributionPoints[0]: "application/pkix-crl", leaf.IssuingCertificateURL[0]: "application/pkix-cert"} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != kind || len(body) == 0 {
			t.Errorf("%s: %s, %v", url, resp.Status, err)
		}
	}
	w.Write("leaf.pem", admin.PEM(leaf.Raw))
	w.Write("iss.pem", admin.PEM(iss.Raw))
	says := func(want string) {
		t.Helper()
		r := w.Tool(nil, "openssl", "ocsp", "-issuer", w.Path("iss.pem"), "-cert", w.Path("leaf.pem"), "-url", leaf.OCSPServer[0], "-partial_chain", "-CAfile", w.Path("iss.pem"))
		if !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("openssl ocsp: want %q\n%s%s", want, r.Stdout, r.Stderr)
		}
	}
	says("leaf.pem: good")
	w.MustCradle("revoke", "--account", world.Account, "--serial", fmt.Sprintf("%x", leaf.SerialNumber), "--reason", "keyCompromise")
	says("Reason: keyCompromise")
	if r := w.Cradle("revoke", "--account", world.Account, "--reason", "bad luck", "--device", "x"); r.Code == 0 || !strings.Contains(r.Stderr, "no such revocation reason") {
		t.Errorf("an unknown reason: exit %d, %s", r.Code, r.Stderr)
	}
}

// split returns the first two certificates of a PEM file.
func split(t *testing.T, b []byte) (leaf, issuer *x509.Certificate) {
	t.Helper()
	var certs []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	if len(certs) < 2 {
		t.Fatalf("%d certificates", len(certs))
	}
	return certs[0], certs[1]
}

package world

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	_ "modernc.org/sqlite" // reads the store's own file

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// Check holds the promises of DESIGN §5 against the world as it is: the log verifies, no intention is open, and
// no device holds a certificate that the store does not know. The server must run; units
// whose agent is off are looked at in their TPM too. Call it after each scenario.
func (w *World) Check() {
	w.T.Helper()
	w.Audit()
	w.Wait("the end of all open intents", time.Minute, func() (bool, string) {
		n := w.openIntents()
		return n == 0, fmt.Sprintf("%d are open", n)
	})
	a := w.Admin()
	for _, u := range w.Units {
		known := map[string]bool{}
		for _, c := range w.Credentials(a, u) {
			known[c.Fingerprint] = true
		}
		for where, certs := range w.certificates(u) {
			for _, c := range certs {
				sum := sha256.Sum256(c.Raw)
				if !c.IsCA && !known[hex.EncodeToString(sum[:])] {
					w.T.Errorf("%s holds a certificate that the store does not know: %s, serial %x, in %s", u.ID, c.Subject, c.SerialNumber, where)
				}
			}
		}
	}
}

// Audit exports the account's log and verifies it offline.
func (w *World) Audit() {
	w.T.Helper()
	file := w.path("audit.jsonl")
	w.MustCradle("audit", "export", "--account", Account, "--out", file)
	v := Decode[struct {
		Findings []any
		Summary  struct{ Leaves, Certificates int64 }
	}](w.T, w.Must("cradle", "audit", "verify", file, "--json"))
	if len(v.Findings) > 0 || v.Summary.Leaves == 0 {
		w.T.Fatalf("audit verify: %+v", v)
	}
}

// Credentials are a unit's certificates as the store has them, newest first; `cradle device show` prints the same.
func (w *World) Credentials(a *admin.Client, u *Unit) []admin.Credential {
	w.T.Helper()
	var d admin.Device
	ctx, cancel := context.WithTimeout(w.T.Context(), time.Minute)
	defer cancel()
	if err := a.Call(ctx, http.MethodGet, "/accounts/"+Account+"/devices/"+url.PathEscape(string(u.ID)), nil, &d); err != nil {
		w.T.Fatalf("device %s: %v", u.ID, err)
	}
	return d.Credentials
}

// Count counts a unit's certificates in the store by profile.
func (w *World) Count(a *admin.Client, u *Unit) map[cradle.Profile]int {
	out := map[cradle.Profile]int{}
	for _, c := range w.Credentials(a, u) {
		out[c.Profile]++
	}
	return out
}

func (w *World) openIntents() (n int) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(w.T.Context(), time.Minute)
	defer cancel()
	if w.opts.DB != "" {
		c, err := pgx.Connect(ctx, w.opts.DB)
		if err != nil {
			w.T.Fatal(err)
		}
		defer c.Close(ctx)
		if err := c.QueryRow(ctx, "SELECT count(*) FROM provider.intents WHERE state = 'open'").Scan(&n); err != nil {
			w.T.Fatal(err)
		}
		return n
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.Data, "provider.db")+"?mode=ro&_pragma=busy_timeout(10000)")
	if err != nil {
		w.T.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM intents WHERE state = 'open'").Scan(&n); err != nil {
		w.T.Fatal(err)
	}
	return n
}

// inJSON finds what may be DER in base64, however the file is built and even when it is torn.
var inJSON = regexp.MustCompile(`"([A-Za-z0-9+/]{200,}={0,2})"`)

// certificates finds every certificate in a unit's folder, by file, and in its TPM when that is free.
func (w *World) certificates(u *Unit) map[string][]*x509.Certificate {
	w.T.Helper()
	out := map[string][]*x509.Certificate{}
	add := func(where string, der []byte) {
		if c, err := x509.ParseCertificate(der); err == nil {
			out[where] = append(out[where], c)
		}
	}
	err := filepath.WalkDir(u.Dir, func(file string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Base(file) == "services-anchors.pem" {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil // a file that came and went
		}
		for _, m := range inJSON.FindAllSubmatch(b, -1) {
			if der, err := base64.StdEncoding.DecodeString(string(m[1])); err == nil {
				add(file, der)
			}
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			add(file, block.Bytes)
		}
		return nil
	})
	if err != nil {
		w.T.Fatal(err)
	}
	if len(out) == 0 {
		w.T.Errorf("%s: no certificate found in %s", u.ID, u.Dir)
	}
	if w.Status(u).Running {
		return out
	}
	ctx, cancel := context.WithTimeout(w.T.Context(), time.Minute)
	defer cancel()
	tpm, err := tpmkey.Open(ctx, u.TPM.Socket())
	if err != nil {
		w.T.Fatalf("TPM of %s: %v", u.ID, err)
	}
	defer tpm.Close()
	for _, index := range []uint32{tpmkey.NVIDevID, tpmkey.NVIAK} {
		der, err := tpm.ReadCertificate(ctx, index)
		if err != nil {
			w.T.Fatalf("NV %#x of %s: %v", index, u.ID, err)
		}
		add(fmt.Sprintf("NV %#x", index), der)
	}
	return out
}

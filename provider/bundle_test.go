package provider_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// bundle is what a maker publishes, and what is known about it.
type bundle struct {
	name         string
	files        [][]byte // imported one after the other
	fingerprints []string // SHA-256, or what else is published, of all
	otherNames   int      // at least so many issuers are written in another string type than their subject
}

// ownBundle is a root, an intermediate that names it in another string type, and one below that.
func ownBundle(t *testing.T) bundle {
	t.Helper()
	name := func(tag int, cn string) []byte {
		type attribute struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		type rdnSET []attribute
		b, err := asn1.Marshal([]rdnSET{{{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.RawValue{Tag: tag, Bytes: []byte(cn)}}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := int64(0)
	sign := func(subject []byte, key *ecdsa.PrivateKey, parent *x509.Certificate, issuer []byte, signer *ecdsa.PrivateKey) *x509.Certificate {
		n++
		c := &x509.Certificate{SerialNumber: big.NewInt(n), RawSubject: subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{byte(n)}}
		p := c
		if parent != nil {
			named := *parent
			named.RawSubject = issuer
			p = &named
		}
		der, err := x509.CreateCertificate(rand.Reader, c, p, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	k1, k2, k3 := newKey(t), newKey(t), newKey(t)
	root := sign(name(asn1.TagPrintableString, "Own TPM Root"), k1, nil, nil, k1)
	inter := sign(name(asn1.TagUTF8String, "Own TPM CA 1"), k2, root, name(asn1.TagUTF8String, "Own  TPM root"), k1)
	below := sign(name(asn1.TagUTF8String, "Own TPM CA 1.1"), k3, inter, name(asn1.TagPrintableString, "Own TPM CA 1"), k2)
	b := bundle{name: "own", otherNames: 2}
	for _, c := range []*x509.Certificate{root, inter, below} {
		b.fingerprints = append(b.fingerprints, ca.Digest(c.Raw))
	}
	b.files = [][]byte{[]byte("# roots\n" + pemText(root)), []byte(pemText(below) + "\n# text\n" + pemText(inter))}
	return b
}

// makersBundle is that of the real makers in the folder CRADLE_TPM_CA (package attest has the test that is skipped
// without it).
func makersBundle(t *testing.T, dir string) bundle {
	t.Helper()
	b := bundle{name: "makers", otherNames: 1}
	sha := regexp.MustCompile(`sha(?:1|256|384|512): "([0-9A-Fa-f:]+)"`)
	for _, f := range []string{"roots", "intermediates"} {
		text, err := os.ReadFile(filepath.Join(dir, f+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		b.files = append(b.files, text)
		list, err := os.ReadFile(filepath.Join(dir, f+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range sha.FindAllSubmatch(list, -1) {
			b.fingerprints = append(b.fingerprints, strings.ToLower(strings.ReplaceAll(string(m[1]), ":", "")))
		}
	}
	return b
}

// published finds a certificate's fingerprint among those published.
func (b bundle) published(c *x509.Certificate) bool {
	s1, s256, s384, s512 := sha1.Sum(c.Raw), sha256.Sum256(c.Raw), sha512.Sum384(c.Raw), sha512.Sum512(c.Raw)
	for _, sum := range [][]byte{s1[:], s256[:], s384[:], s512[:]} {
		if slices.Contains(b.fingerprints, hex.EncodeToString(sum)) {
			return true
		}
	}
	return false
}

// TestImportBundle imports bundles, and again: every certificate is taken with its right fingerprint, and
// every intermediate leads to a root, however names are written.
func TestImportBundle(t *testing.T) {
	bundles := []bundle{ownBundle(t)}
	if dir := os.Getenv("CRADLE_TPM_CA"); dir != "" {
		bundles = append(bundles, makersBundle(t, dir))
	}
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		for _, b := range bundles {
			t.Run(b.name, func(t *testing.T) {
				var all []provider.Imported
				added := 0
				for range 2 {
					all = nil
					for _, f := range b.files {
						imported, n, err := r.p.ImportBundle(t.Context(), cradle.MakerID(b.name), cradle.DiscreteTPM, f)
						if err != nil {
							t.Fatal(err)
						}
						all, added = append(all, imported...), added+n
					}
				}
				byPrint, tops := map[string]provider.Imported{}, map[string]bool{}
				for i, im := range all {
					byPrint[im.Fingerprint] = im
					// Some makers publish as their root what another, whom they do not publish, has signed.
					tops[im.Fingerprint] = im.Root || im.Signer == "" && i < bytes.Count(b.files[0], []byte("BEGIN CERT"))
					if !b.published(im.Certificate) {
						t.Errorf("%s has a fingerprint that is not published", im.Certificate.Subject)
					}
				}
				if len(byPrint) != len(b.fingerprints) || added != len(byPrint) {
					t.Errorf("%d certificates, %d added; %d are published", len(byPrint), added, len(b.fingerprints))
				}
				others := 0
				for _, im := range all {
					at := im
					for steps := 0; !tops[at.Fingerprint] && at.Signer != "" && steps < 10; steps++ {
						if p := byPrint[at.Signer]; !bytes.Equal(at.Certificate.RawIssuer, p.Certificate.RawSubject) {
							others++
						}
						at = byPrint[at.Signer]
					}
					if !tops[at.Fingerprint] {
						t.Errorf("%s leads to no root, but to %s", im.Certificate.Subject, at.Certificate.Subject)
					}
				}
				if others < b.otherNames {
					t.Errorf("%d issuers are written otherwise than they write themselves; the test wants %d", others, b.otherNames)
				}
				t.Logf("%d certificates, %d steps to issuers that write themselves otherwise", len(byPrint), others)
			})
		}
		r.check()
	})
}

// TestImportBundleWhole: of a bundle with one bad certificate nothing is imported.
func TestImportBundleWhole(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	b := ownBundle(t)
	bad := fmt.Appendf(bytes.Clone(b.files[0]), "%s", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("junk")}))
	_, _, err := r.p.ImportBundle(t.Context(), "own", cradle.DiscreteTPM, bad)
	refused(t, err, cradle.Invalid, "certificate 2 of 2")
	imported, added, err := r.p.ImportBundle(t.Context(), "own", cradle.DiscreteTPM, b.files[1])
	if err != nil || added != 2 {
		t.Fatalf("%d added, %v", added, err)
	}
	if i := imported[1]; i.Signer != "" || i.Root {
		t.Errorf("the intermediate leads to %q, whose bundle was refused", i.Signer)
	}
	// The same certificates under another name or tier are another claim about them.
	_, _, err = r.p.ImportBundle(t.Context(), "own", cradle.FirmwareTPM, b.files[1])
	refused(t, err, cradle.Conflict, "discrete-tpm")
}

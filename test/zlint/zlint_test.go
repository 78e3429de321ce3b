package zlint_test

import (
	"bufio"
	"bytes"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// explained reads findings.txt: "LINT: why it stays", then the certificates that have it, indented.
func explained(t *testing.T) map[string][]string {
	t.Helper()
	f, err := os.Open("findings.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]string{}
	name := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		switch line := s.Text(); {
		case strings.HasPrefix(line, "#") || line == "":
		case strings.HasPrefix(line, "  "):
			out[name] = append(out[name], strings.Fields(line)...)
		default:
			var why string
			name, why, _ = strings.Cut(line, ": ")
			if len(why) < 20 {
				t.Errorf("%s is not explained", name)
			}
			out[name] = nil
		}
	}
	return out
}

// policyArc is 2.25.172567384419473948585027457238676076700 in DER.
var policyArc = []byte{0x69, 0x82, 0x83, 0xd3, 0xa2, 0xbc, 0xab, 0xb3, 0xb2, 0x8f, 0x9d, 0xb3, 0xc4, 0xdd, 0xb0, 0x8a, 0xd6, 0xc3, 0xf1, 0x1c}

func TestGoldenCertificates(t *testing.T) {
	files, err := filepath.Glob("../../provider/ca/testdata/golden/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden certificates, %v", len(files), err)
	}
	found := map[string][]string{}
	detail := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatalf("%s holds no certificate", f)
		}
		// zcrypto reads no OID with an arc over 2^31, as our policies are (docs/oids.md): others of the same length stand in.
		der := bytes.ReplaceAll(block.Bytes, policyArc, append([]byte{policyArc[0]}, bytes.Repeat([]byte{1}, len(policyArc)-1)...))
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		c.SelfSigned = bytes.Equal(c.RawSubject, c.RawIssuer) // the exchange broke the signature
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		results := zlint.LintCertificate(c).Results
		if len(results) < 200 {
			t.Fatalf("%d lints", len(results))
		}
		for l, r := range results {
			if r.Status >= lint.Notice {
				found[l] = append(found[l], name)
				detail[l] = fmt.Sprintf("%s: %s", r.Status, r.Details)
			}
		}
	}
	want := explained(t)
	for _, l := range slices.Sorted(maps.Keys(found)) {
		slices.Sort(want[l])
		slices.Sort(found[l])
		if !slices.Equal(found[l], want[l]) {
			t.Errorf("%s (%s)\n found in %s\nlisted in %s", l, detail[l], strings.Join(found[l], " "), strings.Join(want[l], " "))
		}
		delete(want, l)
	}
	for l := range want {
		t.Errorf("%s is listed, but not found any more", l)
	}
}

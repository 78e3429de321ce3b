package system_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testca"
)

// clients are the verbs about clients without evidence.
func (v verbs) clients() {
	v.Helper()
	for name, text := range map[string]string{"password": "correct horse battery\n", "short": "secret\n", "manifest": "gw-1\nsn:SN-7 gw-7\n"} {
		if err := os.WriteFile(filepath.Join(v.w.Dir, name), []byte(text), 0o600); err != nil {
			v.Fatal(err)
		}
	}
	v.one("cradle account basic acme --profile ldevid --user line --password-file @/password --names gw-*", "account", "profile", "user", "tier", "created_at")
	v.ok("cradle account basic acme", "user", "profile")
	v.bad(1, "12 to", "cradle account basic acme --profile ldevid --user line --password-file @/short")
	v.bad(1, "never optional", "cradle account basic acme --profile idevid --user line --password-file @/password")
	v.bad(2, "--password-file", "cradle account basic acme --profile ldevid --user line")
	v.one("cradle account basic acme --profile ldevid --user line --disable", "disabled")
	v.run("cradle anchors --out @/services.pem")
	v.bad(1, "CA of this installation", "cradle account trust-ca acme @/services.pem --profile ldevid --manifest @/manifest")
	maker := filepath.Join(v.w.Dir, "other-ca.pem")
	writeCA(v.T, maker)
	ca := v.one("cradle account trust-ca acme @/other-ca.pem --profile ldevid --manifest @/manifest", "id", "account", "profile", "certificates", "tier", "units", "created_at")
	v.bad(1, "which units", "cradle account trust-ca acme @/other-ca.pem --profile ldevid")
	v.ok("cradle account trust-ca acme", "id", "profile")
	v.one("cradle account trust-ca acme --remove "+ca["id"].(string), "id", "disabled")
	v.bad(1, "no client CA", "cradle account trust-ca acme --remove nothing")
	v.w.Write("kek", strings.Repeat("k", 32))
	v.one("cradle account kek acme --id 0A0b --key-file @/kek", "account", "id")
	v.ok("cradle account kek acme", "id")
	v.bad(1, "16, 24 or 32", "cradle account kek acme --id 0a0b --key-file @/manifest")
	v.bad(2, "--key-file", "cradle account kek acme --id 0a0b")
	v.one("cradle account kek acme --id 0a0b --remove", "id")
	if groups := v.ok("cradle attestation register --account acme --unproved", "id", "class"); len(groups) != 4 {
		v.Errorf("groups %v", groups)
	}
	v.bad(1, "no device", "cradle device heal acme-nothing --account acme")
	v.ok("cradle approval list --account acme")
	v.bad(1, "no approval", "cradle approval approve nothing")
	v.bad(1, "no approval", "cradle approval deny nothing --reason no")
}

// writeCA makes a CA certificate that is not ours.
func writeCA(t *testing.T, file string) {
	t.Helper()
	tmpl := testca.CA("Other CA")
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	if err := os.WriteFile(file, []byte(testca.New(t, tmpl, nil).PEM()), 0o600); err != nil {
		t.Fatal(err)
	}
}

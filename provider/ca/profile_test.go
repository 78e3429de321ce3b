package ca_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// A profile's TOML is whole: what it says is what is read back, whatever the defaults become.
func TestProfileTOML(t *testing.T) {
	for _, name := range ca.BuiltIn {
		p := ca.DefaultProfile(name)
		q, err := ca.ParseProfile(name, p.String())
		if err != nil || q.String() != p.String() || q.Digest() != p.Digest() {
			t.Errorf("%s: %v\n%s", name, err, q)
		}
		empty, err := ca.ParseProfile(name, "")
		if err != nil || empty.String() != p.String() {
			t.Errorf("%s: no key set: %v\n%s", name, err, empty)
		}
	}
	// An empty list is not a missing one.
	p, err := ca.ParseProfile("lab", "kind = \"client\"\nextended_key_usage = []\n")
	if err != nil || len(p.ExtendedKeyUsage) != 0 {
		t.Fatalf("%v %q", err, p.ExtendedKeyUsage)
	}
	if q, err := ca.ParseProfile("lab", p.String()); err != nil || len(q.ExtendedKeyUsage) != 0 {
		t.Errorf("after writing: %v %q", err, q.ExtendedKeyUsage)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"90m": 90 * time.Minute, "24h": 24 * time.Hour, "365d": 365 * 24 * time.Hour, "forever": -1, "90s": 90 * time.Second, "1m30s": 90 * time.Second} {
		var d ca.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v, %v", text, time.Duration(d), err)
		}
		var again ca.Duration
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%s is written %s and read %v, %v", text, d, time.Duration(again), err)
		}
	}
	for _, text := range []string{"", "5", "-1h", "1.5d", "-3d", "99999d", "d"} {
		var d ca.Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %v", text, d)
		}
	}
}

func TestParseProfiles(t *testing.T) {
	got, err := ca.ParseProfiles("[operational]\nvalidity = \"12h\"\n[lab]\nkind = \"client\"\n")
	if err != nil || len(got) != 2 || got["operational"].Validity != ca.Duration(12*time.Hour) || got["lab"].Kind != ca.KindClient {
		t.Errorf("%v %v", got, err)
	}
	for text, part := range map[string]string{
		"":                                   "the file has none",
		"[operational]\nvalidty = \"12h\"\n": `unknown key "operational.validty"`,
		"[operational]\nvalidity = \"12\"\n": "not a duration",
		"[operational]\n[operational]\n":     "line 2",
		"[lab]\n":                            "kind",
		"operational = 5":                    `line 1: "operational": it is a whole number, not a table`,
		"[operational]\nkeys = \"p256\"":     `line 2: "operational.keys": it is text in quotes, not a list`,
		"[operational.wishes]\nsubjet = \"refuse\"": `unknown key "operational.wishes.subjet"`,
	} {
		if _, err := ca.ParseProfiles(text); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want %q", text, err, part)
		}
	}
}

// The bounds within which an operator may change a profile; each refusal names the field.
func TestProfileBounds(t *testing.T) {
	for _, c := range []struct {
		profile cradle.Profile
		toml    string
		part    string // of the refusal; empty: accepted
	}{
		{"operational", `validity = "730d"`, ""},
		{"operational", `validity = "731d"`, "validity: 731d is outside 1m to 730d"},
		{"operational", `validity = "30s"`, "validity:"},
		{"operational", `validity = "forever"`, "validity:"},
		{"ldevid", `validity = "9125d"`, ""},
		{"ldevid", `validity = "9126d"`, "validity:"},
		{"idevid", `validity = "365d"`, "must be forever"},
		{"operational", `renewal_threshold = 0.99`, "renewal_threshold:"},
		{"operational", `kind = "client"`, "always of kind operational"},
		{"lab", `kind = "idevid"`, "kind:"},
		{"lab", `kind = "ldevid"`, "kind:"},
		{"lab", `kind = "root"`, "kind:"},
		{"my-lab", `kind = "client"`, `profile name "my-lab"`},
		{"station", `kind = "client"`, `profile name "station"`},
		{"Lab", `kind = "client"`, "profile"},
		{"operational", `evidence = "none"`, ""},
		{"operational", `evidence = "maybe"`, "evidence:"},
		{"idevid", `evidence = "optional"`, "evidence:"},
		{"idevid", `approval = true`, "approval:"},
		{"idevid", `default = true`, "default:"},
		{"iak", `change_subject_name = true`, "change_subject_name:"},
		{"operational", `keys = []`, "keys: is empty"},
		{"operational", `keys = ["rsa-1024"]`, "keys:"},
		{"operational", `keys = ["ec-p256", "ec-p256"]`, "twice"},
		{"operational", `keys = ["ed25519"]`, "keys: ed25519: TPMs do not make"},
		{"lab", "kind = \"client\"\nkeys = [\"ed25519\"]", ""},
		{"idevid", `keys = ["rsa-2048"]`, "keys:"},
		{"operational", `subject = ["O={account}", "OU={tier}", "CN={device}"]`, ""},
		{"operational", `subject = ["CN={device}"]`, `subject: lacks "O={account}"`},
		{"operational", `subject = ["O={account}", "CN={serial}"]`, `subject: lacks "CN={device}"`},
		{"operational", `subject = ["O={account}", "CN={device}", "CN=x"]`, "more than one CN"},
		{"operational", `subject = ["O={account}", "CN={device}", "XX=1"]`, "subject:"},
		{"operational", `subject = ["O={account}", "CN={device}", "OU={owner}"]`, "no fact {owner}"},
		{"operational", `subject = ["O={account}", "CN={device}", "OU={serial"]`, "no fact"},
		{"operational", `subject = ["O={account}", "CN={device}", "OU=}"]`, "} without {"},
		{"operational", `subject = ["O={account}", "CN={device}", "OU="]`, "1 to 64"},
		{"idevid", `subject = ["O={account}", "CN={device}"]`, "serialNumber={serial}"},
		{"lab", "kind = \"client\"\nsubject = []", "subject: lacks"},
		{"lab", `kind = "client"` + "\n" + `subject_alt_name = ["DNS:{device}.example.com", "URI:urn:x:{serial}", "email:{device}@example.com", "IP:2001:db8::1", "permanentIdentifier:{ek}"]`, ""},
		{"lab", "kind = \"client\"\nsubject_alt_name = [\"DNS:*.example.com\"]", "subject_alt_name: DNS name"},
		{"lab", "kind = \"client\"\nsubject_alt_name = [\"URI:nothing\"]", "subject_alt_name: URI"},
		{"lab", "kind = \"client\"\nsubject_alt_name = [\"dirName:x\"]", "KIND one of"},
		{"idevid", `subject_alt_name = []`, "hardwareModuleName"},
		{"operational", `key_usage = ["digitalSignature", "keyEncipherment"]`, ""},
		{"operational", `key_usage = []`, "key_usage: is empty"},
		{"operational", `key_usage = ["keyAgreement"]`, "lacks digitalSignature"},
		{"operational", `key_usage = ["digitalSignature", "keyCertSign"]`, "keyCertSign is for CAs"},
		{"operational", `key_usage = ["sign"]`, "key_usage:"},
		{"operational", `extended_key_usage = ["clientAuth", "1.3.6.1.4.1.311.20.2.2"]`, ""},
		{"operational", `extended_key_usage = []`, ""},
		{"operational", `extended_key_usage = ["serverAuth"]`, "lacks clientAuth"},
		{"operational", `extended_key_usage = ["clientAuth", "1.3.6.1.5.5.7.3.9"]`, "OCSPSigning would let"},
		{"operational", `extended_key_usage = ["clientAuth", "2.5.29.37.0"]`, "anyExtendedKeyUsage"},
		{"operational", `extended_key_usage = ["clientAuth", "1.3.006"]`, "neither an OID"},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "utf8:{order}"), ""},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "hex:0420{ek}"), ""},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "base64:BQA="), ""},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "hex:0501"), "not one element of DER"},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "hex:05000500"), "not one element of DER"},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", false, "05:00"), "write the value as"},
		{"operational", extensionTOML("1.3.6.1.4.1.99999.1", true, "hex:0500"), "is critical"},
		{"operational", extensionTOML("2.5.29.19", false, "hex:30030101ff"), "basicConstraints"},
		{"operational", extensionTOML("2.5.29.30", false, "hex:3000"), "are the CA's"},
		{"operational", extensionTOML("1.3.6.1.5.5.7.1.1", false, "hex:3000"), "authorityInfoAccess"},
		{"operational", extensionTOML("2.25.172567384419473948585027457238676076700", false, "hex:0500"), "arcs below 2^31"},
		{"operational", extensionTOML("1.2.3", false, "hex:0500") + extensionTOML("1.2.3", false, "hex:0500"), "stands twice"},
		{"operational", "[wishes]\nsubject = \"refuse\"\nca = \"replace\"", ""},
		{"operational", "[wishes]\nsubject = \"allow\"", "neither refuse nor replace"},
		{"operational", "[wishes]\nallow_names = [\"DNS:*.{device}.example.com\"]\nallow_usages = [\"serverAuth\"]", ""},
		{"operational", "[wishes]\nallow_names = [\"*\"]", "allow_names"},
		{"operational", "[wishes]\nallow_names = [\"hardwareModuleName:*\"]", "allow_names"},
		{"operational", "[wishes]\nallow_usages = [\"1.3.6.1.5.5.7.3.9\"]", "allow_usages: OCSPSigning"},
		{"idevid", "[wishes]\nallow_usages = [\"serverAuth\"]", "not the line's to choose"},
	} {
		_, err := ca.ParseProfile(c.profile, c.toml)
		switch {
		case c.part == "" && err != nil:
			t.Errorf("%s: %s: refused: %v", c.profile, c.toml, err)
		case c.part != "" && (cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.part)):
			t.Errorf("%s: %s: %v, want %q", c.profile, c.toml, err, c.part)
		}
	}
}

func extensionTOML(oid string, critical bool, value string) string {
	return fmt.Sprintf("[[extension]]\noid = %q\ncritical = %v\nvalue = %q\n", oid, critical, value)
}

// What a CSR may wish: granted, replaced or refused, field by field.
func TestGrant(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	const allow = "[wishes]\nallow_names = [\"DNS:*.{device}.example.com\"]\nallow_usages = [\"serverAuth\"]\n"
	refuse := func(field string) string { return fmt.Sprintf("[wishes]\n%s = \"refuse\"\n", field) }
	for _, c := range []struct {
		name, rules string
		wish        wish
		refused     string
		replaced    []string
	}{
		{"nothing", "", wish{}, "", nil},
		{"another subject", "", wish{cn: "x"}, "", []string{"subject"}},
		{"another subject, refused", refuse("subject"), wish{cn: "x"}, `subject: the name is "CN=acme-1,O=acme"`, nil},
		{"a foreign name", "", wish{dns: []string{"a.example"}}, "", []string{"subjectAltName"}},
		{"a foreign name, refused", refuse("subject_alt_name"), wish{dns: []string{"a.example"}}, `subjectAltName: "DNS:a.example" is not allowed`, nil},
		{"an allowed name", allow, wish{dns: []string{"a.acme-1.example.com"}}, "", nil},
		{"an allowed and a foreign name", allow, wish{dns: []string{"a.acme-1.example.com", "a.acme-2.example.com"}}, "", []string{"subjectAltName"}},
		{"an allowed pattern, no DNS name", allow, wish{dns: []string{"a b.acme-1.example.com"}}, "DNS name", nil},
		{"an allowed usage", allow, wish{eku: "serverAuth"}, "", []string{"extendedKeyUsage"}}, // it gets clientAuth too
		{"another usage", "", wish{eku: "codeSigning"}, "", []string{"extendedKeyUsage"}},
		{"another usage, refused", refuse("extended_key_usage"), wish{eku: "codeSigning"}, "extendedKeyUsage: codeSigning is not allowed", nil},
		{"another key usage, refused", refuse("key_usage"), wish{ku: 0x40}, "keyUsage: it is digitalSignature", nil},
		{"CA:TRUE", "", wish{ca: true}, "basicConstraints: CA certificates are not for devices", nil},
		{"CA:TRUE, replaced", "[wishes]\nca = \"replace\"\n", wish{ca: true}, "", []string{"basicConstraints"}},
		{"keyCertSign", "", wish{ku: 0x04}, "keyUsage: keyCertSign", nil},
		{"keyCertSign, replaced", "[wishes]\nca = \"replace\"\n", wish{ku: 0x04}, "", []string{"keyUsage"}},
		{"an extension", "", wish{ext: true}, "", []string{"1.2.3"}},
		{"an extension, refused", refuse("extensions"), wish{ext: true}, "1.2.3: the profile has no such extension", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules, err := ca.ParseProfile(cradle.Operational, c.rules)
			if err != nil {
				t.Fatal(err)
			}
			l := leaf(t, key(t, p256).Public())
			l.Rules = &rules
			w, err := ca.ReadWishes(request(t, c.wish.csr(t)))
			if err != nil {
				t.Fatal(err)
			}
			var replaced []string
			if err = w.Grant(&l); err == nil {
				cert, ierr := ca.Issue(iss, ca.NewPermit("i", ca.NewSerial()), l)
				if err = ierr; err == nil {
					replaced = w.Replaced(cert)
				}
			}
			if c.refused != "" {
				if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %v, want %q", err, c.refused)
				}
				return
			}
			if err != nil || !slices.Equal(replaced, c.replaced) {
				t.Errorf("%v, replaced %q, want %q", err, replaced, c.replaced)
			}
		})
	}
}

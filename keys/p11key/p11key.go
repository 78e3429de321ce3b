// Package p11key keeps issuing keys in PKCS#11 tokens: hardware security modules, smart cards, SoftHSM. It fills
// keystore.Store over github.com/ThalesGroup/crypto11, whose sessions are pooled. Keys are made in the token, marked
// sensitive and not extractable, and found again by their CKA_ID and label.
//
// A token is named by its label or serial number in a pkcs11: URI (RFC 7512) with the module's path; the
// PIN comes from a file. A wrong PIN is never tried twice, so that a token does not lock itself. When the token
// went away (an error of its session, device or module) the module is opened anew, at most once a second,
// and callers get kind Busy until it works again.
//
// PKCS#11 modules are C libraries: the part that calls them is built with cgo alone. A binary built without says so.
package p11key

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Scheme begins the references of keys in tokens.
const Scheme = "pkcs11"

// URI is a pkcs11: URI (RFC 7512), of a token or of a key in it. Of its attributes those that are here are
// understood; others are refused.
type URI struct {
	Token  string // label
	Serial string // of the token
	Object string // label of a key
	ID     []byte // CKA_ID of a key
	Module string // query attribute module-path
	PIN    string // query attribute pin-source: a file
}

// ParseURI reads a pkcs11: URI. A PIN in the URI itself is refused: it would stand in argument lists and databases.
func ParseURI(s string) (u URI, err error) {
	rest, ok := strings.CutPrefix(s, Scheme+":")
	if !ok {
		return u, cradle.Errorf(cradle.Invalid, "%q is not a pkcs11: URI", s).WithHint("write it like pkcs11:token=LABEL?module-path=/path/of/module.so (RFC 7512)")
	}
	path, query, _ := strings.Cut(rest, "?")
	var id string
	fields := map[string]*string{"token": &u.Token, "serial": &u.Serial, "object": &u.Object, "id": &id, "module-path": &u.Module, "pin-source": &u.PIN, "type": new(string)}
	seen := map[string]bool{}
	for _, part := range append(strings.Split(path, ";"), strings.Split(query, "&")...) {
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if name == "pin-value" {
			return u, cradle.Errorf(cradle.Invalid, "a PIN in the URI would stand in argument lists and logs").WithHint("put it into a file of mode 0600 and name that with pin-source=file:… or --pin-file")
		}
		f := fields[name]
		if f == nil || !ok || seen[name] {
			return u, cradle.Errorf(cradle.Invalid, "pkcs11: URI: attribute %q is unknown, empty or there twice", name)
		}
		seen[name] = true
		if *f, err = url.PathUnescape(value); err != nil {
			return u, cradle.Errorf(cradle.Invalid, "pkcs11: URI: %s: %v", name, err)
		}
	}
	u.ID = []byte(id)
	u.PIN = strings.TrimPrefix(u.PIN, "file:")
	return u, nil
}

// String writes a key's URI; the query attributes, which are this machine's, are left out.
func (u URI) String() string {
	var parts []string
	for _, f := range []struct{ name, value string }{{"token", u.Token}, {"serial", u.Serial}, {"object", u.Object}, {"id", string(u.ID)}} {
		if f.value != "" {
			parts = append(parts, f.name+"="+escape(f.value))
		}
	}
	return Scheme + ":" + strings.Join(parts, ";")
}

// escape writes everything but unreserved characters as %XX (RFC 7512 §2.3).
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// Credential is the name under which systemd may hand in the PIN (LoadCredential=).
const Credential = "pkcs11-pin"

// readPIN reads the PIN from file, or without one from the systemd credential. It is read at every login, so that
// a PIN may be changed without a restart.
func readPIN(file string) (string, error) {
	credential := false // which systemd protects
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); file == "" && dir != "" {
		file, credential = filepath.Join(dir, Credential), true
	}
	if file == "" {
		return "", cradle.Errorf(cradle.Invalid, "no PIN for the PKCS#11 token").WithHint("name its file with --pin-file, or hand it in as the systemd credential %s", Credential)
	}
	st, err := os.Stat(file)
	if err != nil {
		return "", cradle.Errorf(cradle.Invalid, "PIN: %v", err)
	}
	if st.Mode().Perm()&0o077 != 0 && !credential {
		return "", cradle.Errorf(cradle.Invalid, "the PIN file %s may be read by others (mode %v)", file, st.Mode().Perm()).WithHint("chmod 600 %s", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", cradle.Errorf(cradle.Invalid, "PIN: %v", err)
	}
	pin := strings.TrimRight(string(b), "\r\n")
	if pin == "" {
		return "", cradle.Errorf(cradle.Invalid, "the PIN file %s is empty", file)
	}
	return pin, nil
}

package cradle_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cradle-iot/cradle"

// layers says what a package may import of this module (DESIGN §1). A package belongs to the longest
// prefix of its path. Each entry lists prefixes of allowed packages; "" is the root vocabulary, which all
// may import, as they may internal/ where Internal is set. A new edge is a reviewed line with its reason.
var layers = []struct {
	pkg   string
	allow []string
}{
	{".", nil},
	{"internal", []string{"internal"}},
	{"protocol", []string{"protocol", "internal"}},
	{"keys", []string{"keys", "protocol/evidence", "internal"}}, // key templates are what a TPM makes keys from

	// Custodians: domain, then servers and databases above it. They never import each other.
	{"provider/attest", []string{"protocol", "internal"}},
	{"provider/ca", []string{"keys/keystore", "internal"}}, // keystore is the seam to issuing keys
	{"provider/ledger", []string{"protocol", "internal"}},
	{"provider", []string{"provider/attest", "provider/ca", "provider/ledger", "protocol", "keys/keystore", "keys/filekey", "internal"}},
	{"provider/estserver", []string{"provider", "provider/shed", "protocol", "internal"}},
	{"provider/shed", []string{"internal"}},
	{"provider/permit", []string{"provider", "protocol", "internal"}},
	{"provider/adminserver", []string{"provider", "provider/ledger", "provider/shed", "protocol", "keys/keystore", "internal"}},
	{"provider/status", []string{"provider", "provider/ca", "internal"}}, // writes serial numbers as the records do
	{"provider/providerdb", []string{"provider", "provider/ca", "provider/ledger", "keys/keystore", "internal"}},
	{"provisioning/allocate", []string{"internal"}}, // a pure decision
	{"provisioning", []string{"provisioning/allocate", "protocol", "internal"}},
	{"provisioning/destination", []string{"provisioning", "protocol", "internal"}}, // one client for each kind of foreign hub
	{"provisioning/dpsserver", []string{"provisioning", "protocol", "internal"}},
	{"provisioning/provisioningdb", []string{"provisioning", "protocol", "internal"}},
	{"hub/query", []string{}}, // a pure decision
	{"hub", []string{"hub/query", "protocol", "internal"}},
	{"hub/hubserver", []string{"hub", "hub/query", "protocol", "internal"}},
	{"hub/natsrelay", []string{"hub", "protocol", "internal"}},
	{"hub/hubdb", []string{"hub", "protocol", "internal"}},
	{"device", []string{"protocol", "keys", "internal"}},
	{"oem", []string{"protocol", "keys", "internal"}},

	// Wiring.
	{"cmd/cradle", []string{"provider", "provisioning", "hub", "protocol", "keys/keystore", "keys/filekey", "keys/p11key", "internal"}},
	{"cmd/cradle-oem", []string{"oem", "protocol", "keys", "internal"}},
	{"cmd/cradle-agent", []string{"device", "protocol", "keys", "internal"}},
	{"cmd/cradle-demo", []string{"protocol", "internal"}}, // runs the other commands as a user would
	{"test", []string{"provider", "provisioning", "hub", "device", "oem", "protocol", "keys", "internal", "test"}},
}

// demoOnly may be imported by the demo, by tests and by the benchmark, never by what is shipped.
var demoOnly = []string{"internal/tpmmaker", "internal/swtpm", "internal/testca", "internal/testenv", "keys/softkey"}

// agentBanned keeps the agent small (DESIGN §8): modules and packages that must not be linked into it.
var agentBanned = map[string]string{
	"github.com/alecthomas/kong":          "reflection-heavy command lines; the agent has two verbs",
	"github.com/eclipse/paho.mqtt.golang": "internal/mqtt has the client that the agent needs",
	"modernc.org/sqlite":                  "the agent's journal is a file",
	"github.com/jackc/pgx/v5":             "no database in a device",
	"github.com/nats-io/nats.go":          "a hub's matter",
	"cel.dev/cel-go":                      "7 MB; rules are evaluated by services",
}

type source struct {
	pkg     string // path within the module, "." for the root
	file    string
	test    bool
	imports []string
	doc     bool
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin" || n == "demo") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{pkg: filepath.ToSlash(filepath.Dir(p)), file: p, test: strings.HasSuffix(p, "_test.go"), doc: hasDoc(f)}
		for _, i := range f.Imports {
			v, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, v)
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hasDoc(f *ast.File) bool { return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" }

func under(pkg, prefix string) bool { return pkg == prefix || strings.HasPrefix(pkg, prefix+"/") }

func allowed(from, to string) bool {
	if to == "." || under(to, from) && strings.HasPrefix(from, "cmd/") {
		return true
	}
	best := -1
	for i, l := range layers {
		if under(from, l.pkg) && (best < 0 || len(l.pkg) > len(layers[best].pkg)) {
			best = i
		}
	}
	if best < 0 {
		return false
	}
	for _, a := range layers[best].allow {
		// A domain package names exactly what it may use; "provider" does not open provider/providerdb to provider/ca.
		if under(to, a) {
			return true
		}
	}
	return false
}

// TestImports enforces the table of allowed edges.
func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.imports {
			to, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if to = strings.TrimPrefix(to, "/"); to == "" {
				to = "."
			}
			for _, d := range demoOnly {
				ok := s.test || under(s.pkg, "cmd/cradle-demo") || under(s.pkg, "test") || under(s.pkg, "internal/tpmmaker") || under(s.pkg, d)
				if under(to, d) && !ok {
					t.Errorf("%s imports %s, which must stay out of shipped binaries", s.file, to)
				}
			}
			if s.test { // a test may use the fixtures of other packages, and its own
				continue
			}
			if !allowed(s.pkg, to) {
				t.Errorf("%s: %s may not import %s (imports_test.go holds the table)", s.file, s.pkg, to)
			}
		}
	}
}

// TestAgentStaysSmall follows the agent's imports and finds what must not be linked into it.
func TestAgentStaysSmall(t *testing.T) {
	of := map[string][]string{}
	for _, s := range sources(t) {
		if !s.test {
			of[s.pkg] = append(of[s.pkg], s.imports...)
		}
	}
	seen := map[string]bool{}
	var walk func(pkg string, way []string)
	walk = func(pkg string, way []string) {
		if seen[pkg] {
			return
		}
		seen[pkg] = true
		for _, imp := range of[pkg] {
			for bad, why := range agentBanned {
				if under(imp, bad) {
					t.Errorf("cradle-agent links %s by %s: %s", bad, strings.Join(append(way, pkg), " -> "), why)
				}
			}
			if to, ok := strings.CutPrefix(imp, module+"/"); ok {
				walk(to, append(way, pkg))
			} else if imp == module {
				walk(".", append(way, pkg))
			}
		}
	}
	walk("cmd/cradle-agent", nil)
	if len(seen) < 5 {
		t.Fatalf("followed %d packages only", len(seen))
	}
}

// TestCustodiansAreApart is the heart of the table: it fails even if the table is edited carelessly.
func TestCustodiansAreApart(t *testing.T) {
	custodians := []string{"provider", "oem", "device", "provisioning", "hub"}
	for _, a := range custodians {
		for _, b := range custodians {
			if a != b && allowed(a, b) {
				t.Errorf("the table allows %s to import %s", a, b)
			}
		}
	}
}

// TestPackageDoc: every package has exactly one doc comment.
func TestPackageDoc(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if _, ok := docs[s.pkg]; !ok {
			docs[s.pkg] = nil
		}
		if s.doc {
			docs[s.pkg] = append(docs[s.pkg], path.Base(s.file))
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %s has %d doc comments, want one: %v", pkg, len(files), files)
		}
	}
}

// Package interop_test runs EST clients that others wrote, unmodified, against the real server: the scripts in
// scripts/ are what a reader would type.
package interop_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

func TestMain(m *testing.M) {
	code := world.Main(m)
	if estclient.path != "" {
		_ = os.RemoveAll(estclient.path)
	}
	os.Exit(code)
}

const (
	profile  = "operational"
	user     = "line-7"
	password = "correct-horse-battery"
)

// place is an installation with an account whose clients may come with a password.
type place struct {
	*world.World
	dir  string // with anchors.pem and root.pem
	port string
}

func open(t *testing.T, serve ...string) *place {
	t.Helper()
	w := world.New(t, world.Options{Serve: append([]string{"--est-default-account", world.Account}, serve...)})
	p := &place{World: w, dir: t.TempDir()}
	_, p.port, _ = net.SplitHostPort(w.Addr)
	w.MustCradle("account", "create", world.Account, "--out", filepath.Join(p.dir, "account"))
	w.MustCradle("anchors", "--out", filepath.Join(p.dir, "anchors.pem"))
	w.MustCradle("account", "basic", world.Account, "--profile", profile, "--user", user, "--password-file", w.Write("password", password+"\n"))
	return p
}

// script runs scripts/name in an empty folder and returns what it printed.
func (p *place) script(name, device string, env ...string) string {
	p.T.Helper()
	file, err := filepath.Abs(filepath.Join("scripts", name))
	if err != nil {
		p.T.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", file)
	cmd.Dir = p.T.TempDir()
	cmd.Env = append(os.Environ(),
		"EST=localhost:"+p.port, "LABEL="+world.Account+"-"+profile, "DEVICE="+device, "EST_USER="+user, "EST_PASSWORD="+password,
		"ANCHORS="+filepath.Join(p.dir, "anchors.pem"), "ROOT="+filepath.Join(p.dir, "account", "evaluation-root.pem"))
	cmd.Env = append(cmd.Env, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.T.Fatalf("%s: %v\n%s%s", name, err, out, stderr.String())
	}
	return string(out)
}

// device is what the provider has on record.
func (p *place) device(id string) admin.Device {
	p.T.Helper()
	return world.Decode[admin.Device](p.T, p.MustCradle("device", "show", id, "--account", world.Account))
}

var estclient struct {
	sync.Once
	path string
	err  error
	out  []byte
}

// withEstclient puts GlobalSign's client, built from the module beside this file, into PATH.
func withEstclient(t *testing.T) string {
	t.Helper()
	testenv.Require(t, "gcc")
	estclient.Do(func() {
		estclient.path, estclient.err = os.MkdirTemp("", "cradle-estclient-")
		if estclient.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", filepath.Join(estclient.path, "estclient"), "github.com/globalsign/est/cmd/estclient")
		cmd.Dir = "clients"
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=-buildvcs=false")
		estclient.out, estclient.err = cmd.CombinedOutput()
	})
	if estclient.err != nil {
		t.Fatalf("building estclient: %v\n%s", estclient.err, estclient.out)
	}
	return "PATH=" + estclient.path + ":" + os.Getenv("PATH")
}

func TestCurlAndOpenSSL(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "curl", "openssl", "awk")
	p := open(t)
	out := p.script("curl.sh", "curl-1")
	if d := p.device("curl-1"); len(d.Credentials) < 2 || d.Tier != "software-key" {
		t.Errorf("on record: %+v", d)
	}
	transcript(t, "curl", out, p)
}

func TestEstclient(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "openssl")
	path := withEstclient(t)
	p := open(t)
	out := p.script("estclient.sh", "estclient-1", path)
	if d := p.device("estclient-1"); len(d.Credentials) != 3 {
		t.Errorf("on record: %d certificates", len(d.Credentials))
	}
	transcript(t, "estclient", out, p)
}

func TestStrongSwan(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "pki", "openssl")
	p := open(t)
	out := p.script("strongswan.sh", "swan-1")
	if d := p.device("swan-1"); len(d.Credentials) != 2 {
		t.Errorf("on record: %d certificates", len(d.Credentials))
	}
	transcript(t, "strongswan", out, p)
}

func TestBouncyCastle(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "javac", "openssl")
	p := open(t)
	out := p.script("bouncycastle.sh", "castle-1")
	if d := p.device("castle-1"); len(d.Credentials) != 2 {
		t.Errorf("on record: %d certificates", len(d.Credentials))
	}
	transcript(t, "bouncycastle", out, p)
}

func TestEstclientTPM(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm", "tpm2_create", "openssl")
	path := withEstclient(t)
	p := open(t)
	p.NewMaker()
	p.MustCradle("tpm-maker", "import", p.Path("tpm-maker.pem"), "--maker", world.Maker, "--tier", "simulator")
	tpm := p.NewTPM("estclient", tpmmaker.Options{EKType: tpmmaker.RSA2048})
	out := p.script("tpmenroll.sh", "tpm-1", path, "TPM="+tpm.Socket())
	if d := p.device("tpm-1"); len(d.Credentials) != 1 || d.Tier != "simulator" {
		t.Errorf("on record: %+v", d)
	}
	transcript(t, "tpmenroll", out, p)
}

// transcript holds docs/transcripts/NAME.txt against what was printed; -update writes it. What differs from run to run
// (port, folders, numbers) has fixed words instead.
func transcript(t *testing.T, name, out string, p *place) {
	t.Helper()
	scripts, err := filepath.Abs("scripts")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]string{{scripts + "/", ""}, {"localhost:" + p.port, "est.example.com:8443"}, {filepath.Join(p.dir, "account") + "/", ""}, {p.dir + "/", ""}} {
		out = strings.ReplaceAll(out, r[0], r[1])
	}
	out = regexp.MustCompile(regexp.QuoteMeta(os.TempDir())+`/\S+/`).ReplaceAllString(out, "")
	file := filepath.Join("..", "..", "docs", "transcripts", name+".txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != out {
		t.Errorf("docs/transcripts/%s.txt is not what was printed (UPDATE=1 go test writes it): %v\n%s", name, err, out)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

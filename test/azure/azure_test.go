// Package azure_test runs Microsoft's own SDKs for Node.js, unmodified, against the real server: the scripts in scripts/
// are what the developer of a device or of a back end would write, and the packages are those of package-lock.json.
//
// Some of the SDKs know no other ports than 443 and 8883, so the server has these. The test runs in a network namespace of
// its own, where they are free and nobody needs to be root; where namespaces are not permitted it takes them on loopback.
package azure_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

// inside is set in the environment of the copy that runs in the namespace.
const inside = "CRADLE_TEST_NETNS"

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		if code, ok := again(); ok {
			os.Exit(code)
		}
	} else if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "loopback of the namespace:", err)
		os.Exit(1)
	}
	os.Exit(world.Main(m))
}

// again runs this test program in a network namespace, and says how it ended; ok is false where that is not permitted.
func again() (code int, ok bool) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // the copy ends with the thread that started it
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	_ = cmd.Wait()
	return max(cmd.ProcessState.ExitCode(), 0), cmd.ProcessState.Exited()
}

// loopbackUp switches the namespace's only interface on.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// place is an installation as Azure's clients see one: a host name, an ID scope and two connection strings.
type place struct {
	*world.World
	node     nodes
	dir      string // with anchors.pem
	anchors  string // that file
	host     string // of provisioning service and hub
	idScope  string
	dps, hub string // connection strings of their owners
	ca       *ca    // of the account, as enrolment group "devices"
}

func open(t *testing.T, db string) *place {
	t.Helper()
	testenv.Require(t, "node", "swtpm")
	for _, port := range []string{"443", "8883"} {
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatalf("neither a network namespace nor port %s of loopback is to be had: %v", port, err)
		}
		l.Close()
	}
	p := &place{World: world.New(t, world.Options{DB: db, Addr: "127.0.0.1:443", Serve: []string{"--also-listen", "127.0.0.1:8883"}}), dir: t.TempDir()}
	p.Acts()
	p.anchors = filepath.Join(p.dir, "anchors.pem")
	p.MustCradle("anchors", "--out", p.anchors)
	st := world.Decode[admin.Status](t, p.MustCradle("status"))
	p.host, p.idScope = st.DPSHost, st.IDScope
	if p.host != "localhost" || len(st.Hubs) != 1 || st.Hubs[0] != "localhost" {
		t.Fatalf("host %q, hubs %q: names with a port are of no use to Azure's clients", st.DPSHost, st.Hubs)
	}
	p.dps, p.hub = p.serviceKey("dps"), p.serviceKey("hub")
	p.MustCradle("account", "basic", world.Account, "--profile", "operational", "--user", user, "--password-file", p.Write("password", password+"\n"))
	p.MustCradle("attestation", "register", "--account", world.Account, "--unproved")
	p.node = startNodes(t, 2, p.anchors)
	p.ca = newCA(t, "Tester devices")
	p.group(t, "devices", "enabled", p.ca.pem)
	return p
}

func (p *place) serviceKey(service string) string {
	p.T.Helper()
	return world.Decode[struct {
		ConnectionString string `json:"connection_string"`
	}](p.T, p.MustCradle("service-key", "show", "--service", service)).ConnectionString
}

// group makes an enrolment group for a CA; status is enabled or disabled.
func (p *place) group(t *testing.T, id, status, certificate string) {
	t.Helper()
	p.must(t, nil, "enrolments.put", with{"connection": p.dps, "group": with{"enrollmentGroupId": id, "provisioningStatus": status,
		"attestation": with{"type": "x509", "x509": with{"signingCertificates": with{"primary": with{"certificate": certificate}}}}}})
}

// TestMicrosoft runs the scenarios, which are the methods of suite, on one server for each store, two at a time.
func TestMicrosoft(t *testing.T) {
	testenv.Long(t)
	t.Run("sqlite", func(t *testing.T) { microsoft(t, "") })
	t.Run("postgres", func(t *testing.T) { microsoft(t, testenv.Postgres(t)) })
}

func microsoft(t *testing.T, db string) {
	p := open(t, db)
	scenarios := reflect.TypeFor[suite]()
	t.Run("scenarios", func(t *testing.T) {
		for m := range scenarios.Methods() {
			name, ok := strings.CutPrefix(m.Name, "Test")
			if !ok {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w, own := *p.World, *p // a failure is this scenario's
				w.T, own.World = t, &w
				m.Func.Interface().(func(suite, *testing.T))(suite{&own}, t)
			})
		}
	})
}

// suite has the scenarios.
type suite struct{ *place }

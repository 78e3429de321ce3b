package system_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/test/world"
)

// outage is a world with a device that works, some that will be switched on in the outage, and one whose enrolment is
// asked for in the middle of it, by hand.
type outage struct {
	*world.World
	works  *world.Unit
	late   []*world.Unit
	agents []*world.Process
	byHand *world.Client
	csr    []byte
}

func newOutage(t *testing.T, o world.Options) *outage {
	t.Helper()
	w := &outage{World: world.New(t, o)}
	w.Acts()
	units := w.Make(6)
	w.works, w.late = units[0], units[2:]
	w.agents = append(w.agents, w.Agent(units[:1]))
	w.AwaitConnected(time.Minute, w.works)
	w.byHand = w.Client(units[1])
	key, err := w.byHand.TPM.EnsureLDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w.csr, err = w.byHand.Request(t.Context(), cradle.LDevID, w.byHand.Certificate(device.ByIDevID), key); err != nil {
		t.Fatal(err)
	}
	return w
}

// during: an enrolment is answered with 503 and a time to come again; devices that are switched on now wait.
func (w *outage) during() {
	t := w.T
	t.Helper()
	_, err := w.EST(cradle.LDevID, w.byHand.Certificate(device.ByIDevID)).SimpleEnroll(t.Context(), w.csr)
	var s *est.StatusError
	if !errors.As(err, &s) || s.Code != http.StatusServiceUnavailable || s.RetryAfter <= 0 {
		t.Errorf("an enrolment in the outage: %v, want 503 with Retry-After", err)
	}
	w.agents = append(w.agents, w.Agent(w.late))
	w.Wait("the devices to find that they must wait", time.Minute, func() (bool, string) {
		for _, u := range w.late {
			if r := w.Status(u); r.LastError == nil || r.LastError.Kind != cradle.Busy.String() && r.LastError.Kind != cradle.Internal.String() {
				return false, string(u.ID) + ": " + world.Problem(r)
			}
		}
		return true, ""
	})
}

// after: the same request is answered now, and again with the same certificate; all devices arrive; nothing is lost.
func (w *outage) after() {
	t := w.T
	t.Helper()
	client := w.EST(cradle.LDevID, w.byHand.Certificate(device.ByIDevID))
	var serial string
	w.Wait("the enrolment to succeed", 2*time.Minute, func() (bool, string) {
		cert, err := client.SimpleEnroll(t.Context(), w.csr)
		if err != nil {
			return false, err.Error()
		}
		serial = cert.SerialNumber.String()
		return true, ""
	})
	if again, err := client.SimpleEnroll(t.Context(), w.csr); err != nil || again.SerialNumber.String() != serial {
		t.Errorf("the same request again: %v", err)
	}
	w.byHand.Close()
	all := append([]*world.Unit{w.works}, w.late...)
	w.AwaitConnected(3*time.Minute, all...)
	w.AwaitTelemetry(1, all...)
	for _, a := range w.agents {
		if code := a.Stop(); code != 0 {
			t.Errorf("an agent ended with %d: %s", code, a.Log())
		}
	}
	w.GapFree(w.Events(), 1, all...)
	w.Check()
	a := w.Admin()
	for _, u := range all {
		if n := w.Count(a, u); n[cradle.LDevID] != 1 || n[cradle.Operational] != 1 {
			t.Errorf("%s has %v certificates, want one of each", u.ID, n)
		}
	}
}

// TestPostgresGone: the database machine loses power, and comes back.
func TestPostgresGone(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	pg := testenv.PostgresServer(t)
	w := newOutage(t, world.Options{DB: pg.Database(t)})
	pg.Kill()
	w.during()
	var st admin.Status
	if err := w.Admin().Call(t.Context(), http.MethodGet, "/status", nil, &st); err != nil {
		t.Errorf("cradle status without a database: %v", err)
	}
	for _, s := range st.Services {
		if s.Healthy || s.Detail == "" {
			t.Errorf("without a database: %+v", s)
		}
	}
	r := w.Cradle("device", "list", "--account", world.Account)
	if r.Code != 1 || r.Stdout != "" || strings.Contains(r.Stderr, "postgres") || strings.Contains(r.Stderr, "SQLSTATE") {
		t.Errorf("device list without a database: exit %d, %q, %q", r.Code, r.Stdout, r.Stderr)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	w.after()
}

// TestDiskFull fills the disk under the embedded store, and makes room again. It needs to mount a small file system.
func TestDiskFull(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	disk := testenv.SmallDisk(t, "24m")
	w := newOutage(t, world.Options{Data: filepath.Join(disk, "data")})
	t.Cleanup(w.Server().Kill) // before its disk goes
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	w.during()
	ready := func() (bool, string) {
		code, body := fetch(t, w.HTTP(nil), w.URL()+"/readyz")
		return code == http.StatusOK, body
	}
	var st admin.Status
	if err := w.Admin().Call(t.Context(), http.MethodGet, "/status", nil, &st); err != nil {
		t.Fatal(err)
	}
	if s := st.Services[0]; s.Healthy || !strings.Contains(s.Detail, "no space") {
		t.Errorf("status on a full disk: %+v", s)
	}
	if ok, body := ready(); ok {
		t.Errorf("on a full disk: %s", body)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.Wait("the services to be ready, with no request but this", time.Minute, ready)
	w.after()
	if code := w.Server().Stop(); code != 0 {
		t.Errorf("cradle serve ended with %d", code)
	}
	w.Start()
	w.Check()
}

// fill writes until nothing fits any more.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<16); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestServerDown: the services are away when devices start, and while they work.
func TestServerDown(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := newOutage(t, world.Options{})
	w.Server().Kill()
	w.agents = append(w.agents, w.Agent(w.late))
	w.Wait("the devices to find that they must wait", time.Minute, func() (bool, string) {
		for _, u := range append(w.late, w.works) {
			if r := w.Status(u); r.LastError == nil || r.LastError.Retry.IsZero() || r.Stage == device.StageConnected {
				return false, string(u.ID) + ": " + world.Problem(r)
			}
		}
		return true, ""
	})
	w.Start()
	w.after()
}

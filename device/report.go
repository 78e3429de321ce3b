package device

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// Stage is what the device is at, for people.
type Stage string

// The stages on the way up, and the one beside it.
const (
	StageKeys         Stage = "keys"         // waiting for the TPM
	StageLDevID       Stage = "ldevid"       // getting the LDevID
	StageOperational  Stage = "operational"  // getting the operational certificate
	StageProvisioning Stage = "provisioning" // registering with the provisioning service
	StageConnecting   Stage = "connecting"   // to the hub
	StageConnected    Stage = "connected"
	StageRefused      Stage = "refused" // not connected, and a service said no; asked again slowly
	StageStopped      Stage = "stopped"
)

// Report is the state of a device as its status shows it.
type Report struct {
	Account     cradle.AccountID   `json:"account"`
	Device      cradle.DeviceID    `json:"device"`
	Running     bool               `json:"running"`
	Stage       Stage              `json:"stage"`
	Credentials []CredentialReport `json:"credentials"`
	NextRenewal time.Time          `json:"next_renewal,omitzero"` // of the operational certificate
	Hub         string             `json:"hub,omitempty"`
	NextSeq     uint64             `json:"next_seq"`   // number of the next message
	Unacked     int                `json:"unacked"`    // messages that wait for the hub
	LastError   *Problem           `json:"last_error"` // null when the last attempt of everything went well
	ClockTrust  string             `json:"clock"`      // "vouched" by the provider, or "system"
	Updated     time.Time          `json:"updated,omitzero"`
}

// CredentialReport describes one certificate.
type CredentialReport struct {
	Name      string    `json:"name"`  // idevid, ldevid, operational
	State     string    `json:"state"` // requested, issued, provisioned, active; held for the others
	Serial    string    `json:"serial,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Renewal   time.Time `json:"renewal,omitzero"`
}

// Problem is the last failure of something that has not succeeded since.
type Problem struct {
	What  string    `json:"what"` // keys, time, ldevid, operational, provisioning, hub, telemetry
	Error string    `json:"error"`
	Hint  string    `json:"hint,omitempty"`
	Kind  string    `json:"kind"`
	At    time.Time `json:"at"`
	Retry time.Time `json:"retry"`
}

const statusFile = "status.json"

// live is what only the running agent knows; it is written to statusFile at each change, without sync:
// it is for people, and nothing depends on it.
type live struct {
	Stage    Stage               `json:"stage"`
	Problems map[string]*Problem `json:"problems,omitempty"`
	Clock    string              `json:"clock"`
	Updated  time.Time           `json:"updated"`
}

type reporter struct {
	d  *Device
	mu sync.Mutex
	live
	linked bool
}

func newReporter(d *Device) *reporter {
	return &reporter{d: d, live: live{Stage: StageKeys, Problems: map[string]*Problem{}}}
}

// stage moves the stage; callers below hold no lock.
func (r *reporter) stage(s Stage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moveLocked(s)
}

func (r *reporter) moveLocked(s Stage) {
	if r.linked && s != StageStopped {
		s = StageConnected
	}
	changed := s != r.Stage
	r.Stage = s
	r.writeLocked()
	if changed {
		r.d.log.Debug("stage", "stage", string(s))
		if r.d.opt.OnStage != nil {
			r.d.opt.OnStage(s)
		}
	}
}

func (r *reporter) begin(t todo) {
	s, ok := map[act]Stage{nothing: StageConnecting, getLDevID: StageLDevID, getOperation: StageOperational, register: StageProvisioning}[t.act]
	if ok && r.current() != s {
		r.stage(s)
	}
}

// idle is called when there is nothing to be done about credentials.
func (r *reporter) idle(j *Journal) {
	if s := r.current(); s == StageProvisioning || s == StageOperational && j.Slots[0].State.atLeast(Provisioned) {
		r.stage(StageConnecting)
	}
}

func (r *reporter) current() Stage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Stage
}

func (r *reporter) connected(string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.linked = true
	delete(r.Problems, "hub")
	r.moveLocked(StageConnected)
}

func (r *reporter) disconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.linked = false
	r.moveLocked(StageConnecting)
}

func (r *reporter) problem(what string, err error, pause time.Duration) {
	detail, hint := err.Error(), ""
	var e *cradle.Error
	if errors.As(err, &e) {
		hint = e.Hint
	}
	now := r.d.time.now()
	r.d.log.Warn("will try again", "what", what, "refused", refused(err), "err", detail, "hint", hint, "in", pause.Round(time.Millisecond))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Problems[what] = &Problem{What: what, Error: detail, Hint: hint, Kind: cradle.KindOf(err).String(), At: now, Retry: now.Add(pause)}
	s := r.Stage
	if refused(err) {
		s = StageRefused
	}
	r.moveLocked(s)
}

func (r *reporter) clear(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Problems[what] != nil {
		delete(r.Problems, what)
		r.writeLocked()
	}
}

func (r *reporter) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.linked = false
	r.moveLocked(StageStopped)
}

func (r *reporter) writeLocked() {
	r.Updated, r.Clock = r.d.time.now(), "system"
	if r.d.time.vouched() {
		r.Clock = "vouched"
	}
	b, err := json.MarshalIndent(r.live, "", "  ")
	if err != nil {
		return
	}
	file := filepath.Join(r.d.set.StateDir, statusFile)
	if err := os.WriteFile(file+".new", b, 0o600); err == nil {
		os.Rename(file+".new", file)
	}
}

// Status reads the report of a device from its state folder, whether its agent runs or not. It changes nothing.
func Status(s *settings.Agent) (*Report, error) {
	var j Journal
	if _, _, err := peekRecord(s.StateDir, "journal", &j); err != nil {
		return nil, err
	}
	v := spoolState{Next: 1}
	if _, _, err := peekRecord(s.StateDir, "telemetry", &v); err != nil {
		return nil, err
	}
	r := &Report{Account: s.Account, Device: s.Device, Stage: StageStopped, Hub: j.Hub, NextSeq: v.Next, Unacked: len(v.Messages),
		Credentials: []CredentialReport{}, ClockTrust: "system", Running: running(s.StateDir)}
	b, err := os.ReadFile(filepath.Join(s.StateDir, statusFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var l live
	if err == nil && json.Unmarshal(b, &l) == nil && r.Running {
		r.Stage, r.Updated, r.ClockTrust = l.Stage, l.Updated, l.Clock
	}
	for _, p := range l.Problems {
		if r.LastError == nil || p.At.After(r.LastError.At) {
			r.LastError = p
		}
	}
	if chain, err := readChain(s.IDevID); err == nil {
		r.add("idevid", "held", &Credential{Chain: chain}, 0)
	}
	if len(j.LDevID.Chain) > 0 {
		r.add("ldevid", "held", &j.LDevID, s.Renewal.Fraction)
	}
	for i := range j.Slots {
		if sl := &j.Slots[i]; sl.State != Empty {
			r.add("operational", string(sl.State), &sl.Credential, s.Renewal.Fraction)
		}
	}
	f := facts{}
	if i := newest(&j, f, Issued); i >= 0 {
		r.NextRenewal = j.Slots[i].renewalTime(s.Renewal.Fraction)
	}
	return r, nil
}

func (r *Report) add(name, state string, c *Credential, fraction float64) {
	out := CredentialReport{Name: name, State: state}
	if leaf := c.leaf(); leaf != nil {
		out.Serial, out.Issuer, out.NotBefore, out.NotAfter = leaf.SerialNumber.Text(16), leaf.Issuer.String(), leaf.NotBefore, leaf.NotAfter
		if fraction > 0 {
			out.Renewal = c.renewalTime(fraction)
		}
	}
	r.Credentials = append(r.Credentials, out)
}

// running reports whether an agent holds the folder's lock.
func running(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

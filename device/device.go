package device

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"os"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// Options are a device's surroundings. The zero value of each field but OpenTPM is usable.
type Options struct {
	// OpenTPM opens the TPM of the settings. It is called until it succeeds; the device closes the TPM.
	OpenTPM func(ctx context.Context) (TPM, error)
	Network Network          // nil: the real one
	Log     *slog.Logger     // nil: slog.Default
	Wall    func() time.Time // the system clock, which nobody trusts; nil: time.Now
	Built   time.Time        // when this program was built: a lower bound of the time
	// OnStage is called at each change of stage, from the device's goroutines, and must not block.
	OnStage func(Stage)
	// KillPoint is for tests: it is called around each journal write with "<record>/<step>:write", ":torn"
	// (half of the bytes are in the file) and ":written". With an error the device stops as if it
	// had died there: Run returns that error and nothing more is written.
	KillPoint func(step string) error
}

// Device is one running agent.
type Device struct {
	set  *settings.Agent
	opt  Options
	log  *slog.Logger
	net  Network
	tpm  TPM
	time *clock

	services *x509.CertPool // anchors of TLS and time
	account  *x509.CertPool // anchors of what EST hands out

	// Fixed once the TPM answered.
	idevid     Key
	idevidCert Credential

	ticket ticket // from the registration to the hub

	keysMu sync.Mutex
	keys   map[[32]byte]Key // loaded operational keys by digest of their blob

	mu      sync.Mutex // guards what follows, journal writes included
	rec     *record
	journal Journal
	changed chan struct{} // closed and replaced at every change
	again   [2]bool       // a slot that the hub did not accept is registered again

	spool *spool
	rep   *reporter
	m     maintenance
}

// Run is the device's life until ctx ends, when it returns nil after a clean end. Everything that may mend itself is
// waited for. What is returned needs a person: settings that do not hold together (Invalid), a
// journal of a newer version or of another device (Conflict), another agent on the same folder (Busy).
func Run(ctx context.Context, s *settings.Agent, o Options) error {
	d := &Device{set: s, opt: o, log: o.Log, net: o.Network, keys: map[[32]byte]Key{}, changed: make(chan struct{})}
	if d.log == nil {
		d.log = slog.Default()
	}
	d.log = d.log.With("device", string(s.Device))
	if d.net == nil {
		d.net = internet{}
	}
	wall := o.Wall
	if wall == nil {
		wall = time.Now
	}
	d.time = &clock{wall: wall}
	d.time.raise(o.Built)
	d.time.raise(s.Made)

	var err error
	if d.services, err = loadAnchors(s.Anchors.Services); err != nil {
		return err
	}
	if d.account, err = loadAnchors(s.Anchors.Account); err != nil {
		return err
	}
	if err := durable.MkdirAll(s.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	unlock, err := lock(s.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.openJournal(); err != nil {
		return err
	}
	d.rep = newReporter(d)
	d.m.init()
	err = d.run(ctx)
	if !errors.Is(err, errKilled) {
		d.rep.stop()
	}
	if d.tpm != nil {
		err = errors.Join(err, d.tpm.Close())
	}
	return err
}

// run starts the loops and waits for all of them.
func (d *Device) run(ctx context.Context) error {
	if err := d.openKeys(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	loops := []func(context.Context) error{d.maintain, d.keepConnected, d.makeTelemetry}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(loops))
	for i, loop := range loops {
		wg.Go(func() {
			errs[i] = loop(inner) // nil at the end of inner
			cancel()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *Device) openJournal() error {
	rec, found, err := openRecord(d.set.StateDir, "journal", &d.journal)
	if err != nil {
		return err
	}
	rec.kill = d.opt.KillPoint
	d.rec = rec
	switch found {
	case recovered:
		d.log.Warn("one copy of the journal is damaged; going on from the other")
	case lost:
		d.log.Error("both copies of the journal are damaged and were set aside; starting over with the IDevID")
	}
	if j := &d.journal; j.Device != "" && (j.Device != d.set.Device || j.Account != d.set.Account) {
		return cradle.Errorf(cradle.Conflict, "the journal in %s is of device %s of account %s", d.set.StateDir, j.Device, j.Account).
			WithHint("the settings name %s of %s: use that device's own state folder", d.set.Device, d.set.Account)
	}
	d.time.raise(d.journal.Floor)
	if d.spool, err = openSpool(d.set.StateDir, d.opt.KillPoint); err != nil {
		return err
	}
	if d.journal.Device == "" {
		return d.update("start", func(j *Journal) { j.Device, j.Account = d.set.Device, d.set.Account })
	}
	return nil
}

// update changes the journal: on a copy, saved before it counts. fn must be pure.
func (d *Device) update(step string, fn func(j *Journal)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.journal.clone()
	fn(&j)
	j.Floor = d.time.lowest()
	if err := d.rec.save(step, &j); err != nil {
		return err
	}
	d.journal = j
	d.wakeLocked()
	return nil
}

func (d *Device) wakeLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// now returns a copy of the journal and a channel that is closed at its next change.
func (d *Device) look() (Journal, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.journal, d.changed
}

// openKeys opens the TPM and finds the IDevID's key and certificate, for as long as it takes.
func (d *Device) openKeys(ctx context.Context) error {
	d.rep.stage(StageKeys)
	var b backoff
	for ctx.Err() == nil {
		err := d.tryKeys(ctx)
		if err == nil {
			d.rep.clear("keys")
			return nil
		}
		pause := b.fail(err)
		d.rep.problem("keys", err, pause)
		sleep(ctx, pause)
	}
	return nil
}

func (d *Device) tryKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if d.tpm == nil {
		t, err := d.opt.OpenTPM(ctx)
		if err != nil {
			return err
		}
		d.tpm = t
	}
	key, err := d.tpm.IDevID(ctx)
	if err != nil {
		return err
	}
	chain, err := readChain(d.set.IDevID)
	if err != nil {
		der, nvErr := d.tpm.IDevIDCertificate(ctx) // the file may be lost, NV is still there
		if nvErr != nil {
			return errors.Join(err, nvErr)
		}
		d.log.Warn("reading the IDevID certificate from the TPM instead", "err", err)
		chain = [][]byte{der}
	}
	c := Credential{Chain: chain}
	leaf := c.leaf()
	switch {
	case leaf == nil:
		return cradle.Errorf(cradle.Invalid, "the IDevID certificate does not parse").WithHint("the line writes it to %s", d.set.IDevID)
	case !samePublic(leaf.PublicKey, key.Public()):
		return cradle.Errorf(cradle.Conflict, "the IDevID certificate in %s is not for this TPM's key", d.set.IDevID).
			WithHint("was the TPM exchanged, or the settings of another unit copied here?")
	case leaf.Subject.CommonName != string(d.set.Device):
		return cradle.Errorf(cradle.Conflict, "the IDevID certificate is of %q, the settings of %q", leaf.Subject.CommonName, d.set.Device)
	}
	d.idevid, d.idevidCert = key, c
	d.time.raise(leaf.NotBefore)
	return nil
}

// key returns the operational key of a blob, loaded once.
func (d *Device) key(ctx context.Context, blob []byte) (Key, error) {
	id := sha256.Sum256(blob)
	d.keysMu.Lock()
	defer d.keysMu.Unlock()
	if k := d.keys[id]; k != nil {
		return k, nil
	}
	k, err := d.tpm.LoadKey(ctx, blob)
	if err != nil {
		return nil, fmt.Errorf("loading the operational key: %w", err)
	}
	if len(d.keys) > 3 { // two slots, and what they held before
		clear(d.keys)
	}
	d.keys[id] = k
	return k, nil
}

// lock keeps a second agent out of the folder. The kernel lets go when the process dies.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, cradle.Errorf(cradle.Busy, "another agent uses the state folder %s", dir).WithHint("stop it first, or give each device its own folder")
	}
	return func() { f.Close() }, nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

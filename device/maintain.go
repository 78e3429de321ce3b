package device

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"github.com/cradle-iot/cradle"
)

// maintenance belongs to the maintain goroutine.
type maintenance struct {
	backoff   [actCount]backoff
	timeAt    time.Time // monotonic: when the time is to be asked for
	timeAsked time.Time // monotonic: when it was asked for last
	begun     time.Time // monotonic: when the open exchange was first sent by this process
	// Monotonic, by getLDevID and getOperation: no renewal before.
	paused    [actCount]time.Time
	rung      int
	ldevidBad bool

	kept *session // from askTime for the enrolment that comes next

	ldevidLost bool
	slotLost   map[[32]byte]bool // by digest of the key blob
}

func (m *maintenance) init() {
	m.timeAt, m.slotLost = time.Now(), map[[32]byte]bool{}
}

// Times.
const (
	timeAgain   = 6 * time.Hour    // between statements of the time
	timeSoonest = 30 * time.Second // between suspicions of the clock
	longestNap  = 10 * time.Minute // the plan is looked at this often, whatever it said
)

// maintain does what the plan says until ctx ends. It returns an error only when the journal cannot go on.
func (d *Device) maintain(ctx context.Context) error {
	m := &d.m
	defer m.release()
	for ctx.Err() == nil {
		j, changed := d.look()
		do, next := plan(&j, d.facts(&j), func(a act) bool { return m.backoff[a].ready() })
		if do.act != getLDevID && do.act != getOperation {
			m.release()
		}
		if do.act == nothing {
			d.rep.idle(&j)
			d.nap(ctx, changed, next)
			continue
		}
		d.rep.begin(do)
		err := d.do(ctx, &j, do)
		switch {
		case errors.Is(err, errKilled):
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil:
			pause := m.backoff[do.act].fail(err)
			d.suspectClock(err)
			d.rep.problem(do.act.String(), err, pause)
		default:
			m.backoff[do.act].reset()
			d.rep.clear(do.act.String())
		}
	}
	return nil
}

func (d *Device) do(ctx context.Context, j *Journal, t todo) error {
	switch t.act {
	case askTime:
		return d.askTime(ctx, j)
	case getLDevID:
		return d.enrol(ctx, j, cradle.LDevID, t)
	case getOperation:
		return d.enrol(ctx, j, cradle.Operational, t)
	case register:
		return d.register(ctx, j, t.slot)
	}
	return fmt.Errorf("internal error: act %d", t.act)
}

func (d *Device) facts(j *Journal) facts {
	m := &d.m
	f := facts{now: d.time.now(), fraction: d.set.Renewal.Fraction, askTime: !time.Now().Before(m.timeAt),
		ldevidLost: m.ldevidLost, rung: m.rung, ldevidBad: m.ldevidBad}
	for a, t := range m.paused {
		f.paused[a] = time.Now().Before(t)
	}
	for i := range j.Slots {
		f.slotLost[i] = m.slotLost[digest(j.Slots[i].Key)]
	}
	d.mu.Lock()
	f.again = d.again
	d.mu.Unlock()
	return f
}

// nap waits for a change, a backoff's end, or the time next.
func (d *Device) nap(ctx context.Context, changed <-chan struct{}, next time.Time) {
	m := &d.m
	wait := longestNap
	if !next.IsZero() {
		wait = min(wait, next.Sub(d.time.now()))
	}
	for i := range m.backoff {
		if u := time.Until(m.backoff[i].until); u > 0 {
			wait = min(wait, u)
		}
	}
	for _, t := range append(m.paused[:], m.timeAt) {
		if u := time.Until(t); u > 0 {
			wait = min(wait, u)
		}
	}
	t := time.NewTimer(max(wait, 10*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
	}
}

// suspectClock has the time asked for again soon when err may come from a wrong clock.
func (d *Device) suspectClock(err error) {
	if !isTimeError(err) && cradle.KindOf(err) != cradle.Unauthorized {
		return
	}
	d.m.timeAt = time.Now()
	if soonest := d.m.timeAsked.Add(timeSoonest); d.m.timeAt.Before(soonest) {
		d.m.timeAt = soonest
	}
}

// askTime asks the provider for the time. TLS verifies everything but validity; what counts is the
// statement's own signature over our nonce. The connection is kept for the enrolment that comes next, if one
// does and the server's chain holds at the time now known.
func (d *Device) askTime(ctx context.Context, j *Journal) (err error) {
	m := &d.m
	m.timeAsked = time.Now()
	nonce := make([]byte, 32)
	rand.Read(nonce)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var auth *tls.Certificate
	if m.backoff[askTime].failures == 0 { // else it may be our certificate that is not liked
		auth = d.nextAuthenticator(ctx, j)
	}
	p, err := d.openSession(auth, true)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil && auth != nil && p.judge() == nil {
			m.kept = p
			return
		}
		p.Close()
	}()
	s, err := p.Time(ctx, nonce)
	if cradle.KindOf(err) == cradle.NotFound {
		d.log.Info("the provider states no time; relying on this device's clock")
		m.timeAt = time.Now().Add(24 * time.Hour)
		return nil
	}
	if err != nil {
		return fmt.Errorf("asking for the time: %w", err)
	}
	at, err := s.Verify(nonce, d.services)
	if err != nil {
		return err
	}
	floor := d.time.lowest()
	if at.Before(floor.Add(-24 * time.Hour)) {
		return cradle.Errorf(cradle.Unauthorized, "the provider states %s, which is before %s, vouched for earlier", at.Format(time.RFC3339), floor.Format(time.RFC3339)).
			WithHint("compare the clocks of the provider and of the line")
	}
	if off := d.time.wall().Sub(at); off.Abs() > time.Minute {
		d.log.Warn("this device's clock is wrong; going by the provider's", "clock", d.time.wall().UTC(), "provider", at)
	}
	d.time.state(at) // a little behind the floor: the floor counts
	m.timeAt = time.Now().Add(timeAgain + mrand.N(timeAgain/4))
	if at.Sub(floor) < time.Hour { // spare the flash; later journal writes carry the floor along
		return nil
	}
	return d.update("time", func(*Journal) {})
}

// nextAuthenticator is the certificate with which the enrolment that comes next, as far as is known without the
// time, authenticates; nil when there is none.
func (d *Device) nextAuthenticator(ctx context.Context, j *Journal) *tls.Certificate {
	f := d.facts(j)
	f.askTime = false
	do, _ := plan(j, f, func(a act) bool { return d.m.backoff[a].ready() })
	if do.act != getLDevID && do.act != getOperation {
		return nil
	}
	auth, err := d.authenticator(ctx, j, do.auth)
	if err != nil { // the enrolment will say so
		return nil
	}
	return auth
}

// register tells the provisioning service the newest certificate and learns the hub.
func (d *Device) register(ctx context.Context, j *Journal, slot int) error {
	cert, err := d.slotCertificate(ctx, &j.Slots[slot])
	if err != nil {
		d.noteLost(err, bySlot(slot), j)
		return err
	}
	host, err := hostOf(d.set.Provisioning.Endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	a, err := d.net.Register(ctx, d.set.Provisioning.Endpoint, d.set.Provisioning.IDScope, d.ticket.keep(d.tlsConfig(host, cert), cert.Certificate[0]), string(d.set.Device))
	if err != nil {
		return err
	}
	if _, _, err := hubAddress(a.Hub); err != nil {
		return err
	}
	leaf := cert.Certificate[0]
	err = d.update("provisioned", func(j *Journal) {
		if s := &j.Slots[slot]; s.is(leaf) {
			if s.State == Issued {
				s.State = Provisioned
			}
			j.Hub, j.HubDevice = a.Hub, a.DeviceID
		}
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.again[slot] = false
	d.wakeLocked() // after again: the link may try at once
	d.mu.Unlock()
	d.log.Info("registered with the provisioning service", "hub", a.Hub)
	return nil
}

// noteLost remembers that the TPM does not hold an authenticator's key any more (it was cleared).
// Nothing is deleted; the next rung of the ladder is taken. Errors of a TPM that is only away say nothing.
func (d *Device) noteLost(err error, a Authenticator, j *Journal) {
	if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.NotFound && !errors.Is(err, errNotOurKey) {
		return
	}
	switch a {
	case ByLDevID:
		d.m.ldevidLost = true
	case BySlot0, BySlot1:
		i := 0
		if a == BySlot1 {
			i = 1
		}
		d.m.slotLost[digest(j.Slots[i].Key)] = true
	}
	d.log.Warn("the TPM does not hold this credential's key any more", "credential", string(a), "err", err)
}

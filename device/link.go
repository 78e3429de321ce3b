package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// errNoAck: the hub is connected and silent, as over a half-open link.
var errNoAck = errors.New("the hub did not acknowledge telemetry in time")

const (
	connectTimeout = 45 * time.Second
	keepAlive      = 4 * time.Minute
	// reregisterAfter failures to connect in a row the provisioning service is asked again: the device may have moved.
	reregisterAfter = 6
	settled         = time.Minute // a connection that held this long resets the backoff
)

// link is one accepted connection to the hub.
type link struct {
	hub   Hub
	leaf  []byte // of the certificate that it was accepted with
	stop  context.CancelFunc
	ended chan struct{} // closed when nothing of it runs any more
	err   error         // valid after ended
	since time.Time
}

// keepConnected holds one connection to the hub, with the newest certificate that the hub accepts.
// A new certificate is connected before the old connection is given up (the hub itself ends that one).
func (d *Device) keepConnected(ctx context.Context) error {
	var cur *link
	var back [2]backoff // by slot
	var leaves [2][]byte
	defer func() {
		if cur != nil {
			cur.end()
		}
	}()
	for ctx.Err() == nil {
		j, changed := d.look()
		for i := range j.Slots { // a new certificate starts without backoff
			if c := j.Slots[i].Chain; len(c) > 0 && !j.Slots[i].is(leaves[i]) {
				back[i].reset()
				leaves[i] = c[0]
			}
		}
		slot, wait := d.nextLink(&j, cur, &back)
		if slot >= 0 {
			l, err := d.connect(ctx, &j, slot)
			if errors.Is(err, errKilled) {
				return err
			}
			if ctx.Err() != nil {
				if l != nil {
					l.end()
				}
				return nil
			}
			if err != nil {
				d.connectFailed(&j, slot, err, &back[slot])
				continue
			}
			if cur != nil {
				cur.end()
			}
			cur = l
			d.rep.connected(j.Hub)
			d.log.Info("connected to the hub", "hub", j.Hub)
			continue
		}
		var ended chan struct{}
		if cur != nil {
			ended = cur.ended
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-t.C:
		case <-ended:
			i := d.slotOf(cur.leaf)
			err := cur.err
			if err == nil {
				err = errors.New("the connection ended")
			}
			d.rep.disconnected()
			if i >= 0 {
				if time.Since(cur.since) >= settled {
					back[i].reset()
				}
				d.rep.problem("hub", fmt.Errorf("connection to the hub: %w", err), back[i].fail(err))
			}
			cur = nil
		}
		t.Stop()
	}
	return nil
}

// nextLink chooses the slot to connect now, or -1 and how long to wait for it.
func (d *Device) nextLink(j *Journal, cur *link, back *[2]backoff) (slot int, wait time.Duration) {
	wait = longestNap
	if j.Hub == "" {
		return -1, wait
	}
	f := facts{now: d.time.now()}
	if !d.time.vouched() { // our clock alone does not keep us from trying
		f.now = d.time.lowest()
	}
	first := newest(j, f, Provisioned)
	if first < 0 {
		return -1, wait
	}
	for _, i := range []int{first, 1 - first} {
		if !f.usable(j, i, Provisioned) {
			continue
		}
		if cur != nil && j.Slots[i].is(cur.leaf) {
			return -1, wait // connected with the best that works
		}
		if back[i].ready() {
			return i, 0
		}
		wait = min(wait, time.Until(back[i].until))
	}
	return -1, max(wait, time.Millisecond)
}

// connect dials the hub with a slot's certificate. The first accepted CONNECT with the newer certificate
// makes it the active one; only then the other slot is given up.
func (d *Device) connect(ctx context.Context, j *Journal, slot int) (*link, error) {
	d.rep.begin(todo{}) // connecting
	dial, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	cert, err := d.slotCertificate(dial, &j.Slots[slot])
	if err != nil {
		return nil, err
	}
	host, _, err := hubAddress(j.Hub)
	if err != nil {
		return nil, err
	}
	hub, err := d.net.Connect(dial, j.Hub, d.ticket.use(d.tlsConfig(host, cert), cert.Certificate[0]), mqtt.Options{ClientID: string(j.HubDevice),
		Username: iothub.UserName(host, j.HubDevice), KeepAlive: keepAlive, Clean: true, MaxPacket: 256 << 10})
	if err != nil {
		return nil, err
	}
	leaf := cert.Certificate[0]
	if j.Slots[slot].State != Active || len(j.Slots[1-slot].Chain) > 0 {
		err := d.update("active", func(j *Journal) {
			s, other := &j.Slots[slot], &j.Slots[1-slot]
			if !s.is(leaf) {
				return
			}
			s.State = Active
			if len(other.Chain) > 0 && newer(s, other) {
				*other = Slot{}
			}
		})
		if err != nil {
			hub.Close()
			return nil, err
		}
	}
	run, stop := context.WithCancel(ctx)
	l := &link{hub: hub, leaf: leaf, stop: stop, ended: make(chan struct{}), since: time.Now()}
	go func() {
		defer close(l.ended)
		defer stop()
		published := make(chan error, 1)
		go func() {
			err := d.publish(run, hub)
			if err != nil {
				stop() // ends Run
			}
			published <- err
		}()
		// Run is not given ctx: at a clean end DISCONNECT is sent before the connection is cut.
		done := context.AfterFunc(run, func() { hub.Close() })
		err := hub.Run(context.WithoutCancel(run))
		done()
		stop()
		if perr := <-published; perr != nil {
			err = perr
		}
		l.err = err
	}()
	return l, nil
}

// end stops the link and waits for it.
func (l *link) end() {
	l.stop()
	<-l.ended
}

func (d *Device) connectFailed(j *Journal, slot int, err error, b *backoff) {
	pause := b.fail(err)
	d.rep.problem("hub", fmt.Errorf("connecting to the hub %s: %w", j.Hub, err), pause)
	if refused(err) || b.failures%reregisterAfter == 0 {
		d.mu.Lock()
		d.again[slot] = true
		d.wakeLocked()
		d.mu.Unlock()
	}
}

func (d *Device) slotOf(leaf []byte) int {
	j, _ := d.look()
	for i := range j.Slots {
		if j.Slots[i].is(leaf) {
			return i
		}
	}
	return -1
}

// stop reports whether an error of the journal ends the device rather than one act.
func stop(err error) bool { return errors.Is(err, errKilled) }

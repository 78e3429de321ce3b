package device

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// act is a kind of thing to do; each kind has its own backoff, so that one that fails holds up no other.
type act int

const (
	nothing      act = iota
	askTime          // ask the provider for the time
	getLDevID        // enrol or renew the LDevID
	getOperation     // enrol or renew the operational certificate
	register         // register an operational certificate with the provisioning service
	actCount
)

func (a act) String() string {
	return [...]string{"nothing", "time", "ldevid", "operational", "provisioning"}[a]
}

// todo is one act with its arguments.
type todo struct {
	act   act
	slot  int           // operational: where the certificate goes or is
	auth  Authenticator // who asks
	renew bool          // by simplereenroll: auth is what is renewed
}

// facts are what plan needs to know beside the journal.
type facts struct {
	now        time.Time
	fraction   float64 // of a life after which renewal begins
	askTime    bool
	ldevidLost bool    // the TPM does not hold its key any more
	slotLost   [2]bool // the same of the slots
	again      [2]bool // the hub did not accept the slot: register it again
	rung       int     // refusals of the operational certificate in a row
	ldevidBad  bool    // the LDevID is not accepted as such
	// By getLDevID and getOperation: a certificate has just come; if it seems due our clock is wrong.
	paused [actCount]bool
}

// plan says what to do now, and when to look again if nothing happens before. ready tells whether a
// kind of act is not in backoff. It only reads.
func plan(j *Journal, f facts, ready func(act) bool) (do todo, next time.Time) {
	look := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	try := func(t todo) bool {
		if do.act == nothing && ready(t.act) {
			do = t
		}
		return do.act != nothing
	}
	if f.askTime && try(todo{act: askTime}) {
		return do, next
	}
	if x := j.Exchange; x != nil { // one at a time: finish what was begun
		t := todo{act: getLDevID, slot: x.Slot, auth: x.Auth, renew: x.Renew}
		if x.Profile == cradle.Operational {
			t.act = getOperation
		}
		try(t)
	} else {
		enrolments(j, f, try, look)
	}
	// The newest certificate that is not registered; or one that the hub sent back.
	if i := newest(j, f, Issued); i >= 0 && (j.Slots[i].State == Issued || f.again[i]) {
		try(todo{act: register, slot: i})
	} else if i >= 0 && f.again[1-i] && f.usable(j, 1-i, Issued) {
		try(todo{act: register, slot: 1 - i})
	}
	return do, next
}

// enrolments considers certificates, what keeps the device working first.
func enrolments(j *Journal, f facts, try func(todo) bool, look func(time.Time)) {
	ldevid := len(j.LDevID.Chain) > 0 && !j.LDevID.expired(f.now) && !f.ldevidLost
	current := newest(j, f, Issued)

	if current >= 0 {
		due := j.Slots[current].renewalTime(f.fraction)
		other := 1 - current
		switch {
		case f.now.Before(due):
			look(due)
		case f.paused[getOperation] || f.usable(j, other, Issued) && j.Slots[current].State != Active:
			// The current one has yet to prove itself; the one before it is still good and stays.
		case f.rung%2 == 1 && ldevid && !f.ldevidBad:
			try(todo{act: getOperation, slot: other, auth: ByLDevID})
		case f.rung%2 == 1 && f.ldevidBad:
			try(todo{act: getLDevID, auth: ByIDevID})
		default:
			try(todo{act: getOperation, slot: other, auth: bySlot(current), renew: true})
		}
	}
	switch {
	case !ldevid || current < 0 && f.ldevidBad:
		try(todo{act: getLDevID, auth: ByIDevID})
	case current < 0:
		try(todo{act: getOperation, slot: freeSlot(j, f), auth: ByLDevID})
	}
	if ldevid && !f.paused[getLDevID] {
		if due := j.LDevID.renewalTime(f.fraction); f.now.Before(due) {
			look(due)
		} else {
			try(todo{act: getLDevID, auth: ByLDevID, renew: true})
		}
	}
}

// usable reports whether slot i holds a certificate of at least that state that can still be used.
func (f facts) usable(j *Journal, i int, least SlotState) bool {
	s := &j.Slots[i]
	return s.State.atLeast(least) && !f.slotLost[i] && !s.expired(f.now)
}

// newest returns the usable slot whose certificate is the latest, or -1.
func newest(j *Journal, f facts, least SlotState) int {
	best := -1
	for i := range j.Slots {
		if f.usable(j, i, least) && (best < 0 || newer(&j.Slots[i], &j.Slots[best])) {
			best = i
		}
	}
	return best
}

// newer compares two slots that hold certificates.
func newer(a, b *Slot) bool {
	la, lb := a.leaf(), b.leaf()
	if la == nil || lb == nil {
		return lb == nil && la != nil
	}
	if !la.NotBefore.Equal(lb.NotBefore) {
		return la.NotBefore.After(lb.NotBefore)
	}
	return !a.State.atLeast(b.State) // within a second: what has come less far came later
}

// freeSlot is where a first certificate goes when no slot is usable: where the key already is, else an empty slot,
// else the older one.
func freeSlot(j *Journal, f facts) int {
	for _, want := range []SlotState{Requested, Empty} {
		for i := range j.Slots {
			if j.Slots[i].State == want && !f.slotLost[i] {
				return i
			}
		}
	}
	if newer(&j.Slots[0], &j.Slots[1]) {
		return 1
	}
	return 0
}

func (s SlotState) atLeast(t SlotState) bool { return s.rank() >= t.rank() }

func (s SlotState) rank() int {
	for i, k := range []SlotState{Empty, Requested, Issued, Provisioned, Active} {
		if s == k {
			return i
		}
	}
	return 0
}

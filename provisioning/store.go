package provisioning

import (
	"context"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
)

// ErrETag is wrapped by the Conflict that a store returns when an If-Match condition does not hold.
var ErrETag = errors.New("etag does not match")

// Identity is what an installation makes once.
type Identity struct {
	IDScope    string // for example "0ne0001a2b3"
	ServiceKey []byte // key of the policy provisioningserviceowner
	Created    time.Time
}

// Store keeps groups, registrations and the outbox. Each method is one transaction, durable when it
// returns without error, and safe for concurrent use by several replicas. A missing thing is
// cradle.NotFound; a store that is out of reach for the moment is cradle.Busy, and everything may be
// tried again then. Functions passed in must be pure: they may run more than once.
//
// Who controls the store can admit devices of its choice to hubs and hide a block. It holds the service key, and
// symmetric keys, which provisioningdb seals where it is given a vault.
type Store interface {
	// Identity returns what is stored, after storing fresh if nothing was.
	Identity(ctx context.Context, fresh Identity) (Identity, error)

	// Groups returns every group, in order of id.
	Groups(ctx context.Context) ([]Group, error)
	// Group returns one group.
	Group(ctx context.Context, id string) (Group, error)
	// PutGroup stores what change makes of the present group (nil when there is none). A signing
	// certificate that stands in another group is a Conflict.
	PutGroup(ctx context.Context, id string, change func(present *Group) (Group, error)) (Group, error)
	// DeleteGroup deletes a group after check has seen it. Its registrations stay, so that a later
	// revocation still finds its way to the hub.
	DeleteGroup(ctx context.Context, id string, check func(Group) error) error

	Enrollments

	// Registration returns one registration.
	Registration(ctx context.Context, id RegistrationID) (Registration, error)
	// Registrations returns up to limit of a group's registrations in order of id, after the given id.
	Registrations(ctx context.Context, group string, after RegistrationID, limit int) ([]Registration, error)
	// BlockedRegistrations returns up to limit of those that a status feed blocked, likewise.
	BlockedRegistrations(ctx context.Context, after RegistrationID, limit int) ([]Registration, error)
	// DeleteRegistration deletes a registration and what the outbox holds of it, after check has seen it.
	DeleteRegistration(ctx context.Context, id RegistrationID, check func(Registration) error) error
	// Change applies a step to one registration (see Step), with its individual enrolment and the named group
	// (empty: none), and writes its deliveries into the outbox in the same transaction. Concurrent changes of one registration happen one after the other.
	Change(ctx context.Context, id RegistrationID, group string, step Step, lease Lease) (Registration, []Delivery, error)

	// Links returns every stored link, in order of name.
	Links(ctx context.Context) ([]Link, error)
	// PutLink stores what change makes of the present link (nil when there is none).
	PutLink(ctx context.Context, name string, change func(present *Link) (Link, error)) (Link, error)
	// DeleteLink deletes a link after check has seen it, and whether a registration or the outbox names it.
	DeleteLink(ctx context.Context, name string, check func(l Link, inUse bool) error) error

	Outbox
}

// Enrollments keeps individual enrolments.
type Enrollments interface {
	// Enrollment returns one enrolment.
	Enrollment(ctx context.Context, id RegistrationID) (Enrollment, error)
	// EnrollmentPage returns up to limit enrolments in order of id, after the given id.
	EnrollmentPage(ctx context.Context, after RegistrationID, limit int) ([]Enrollment, error)
	// AnyEnrollment reports whether there is one.
	AnyEnrollment(ctx context.Context) (bool, error)
	// PutEnrollment stores what change makes of the present enrolment (nil when there is none).
	PutEnrollment(ctx context.Context, id RegistrationID, change func(present *Enrollment) (Enrollment, error)) (Enrollment, error)
	// DeleteEnrollment deletes an enrolment after check has seen it. Its registration stays.
	DeleteEnrollment(ctx context.Context, id RegistrationID, check func(Enrollment) error) error
	// AddEnrollments stores those of es that do not exist yet and returns how many that were.
	AddEnrollments(ctx context.Context, es []Enrollment) (added int, err error)
}

// Step is one move of the state machine: from what is stored (nil when there is nothing) to what
// shall be stored, under what is enrolled now. A zero Outcome changes nothing.
type Step func(present *Registration, by Enrolled) (Outcome, error)

// Outcome of a step.
type Outcome struct {
	Registration *Registration // nil: leave what is stored
	Deliver      []string      // names of hubs that must hear of it; each delivery carries Registration.Version
}

// Settled is what becomes of a registration when a hub has been told, and which hubs must hear of it next.
type Settled func(Registration) (next Registration, deliver []string)

// Lease is the right to deliver, for a while, alone.
type Lease struct {
	Owner string    // a replica; empty: take no lease
	Now   time.Time // a lease that ended before may be taken over
	Until time.Time
}

// Delivery is a row of the outbox: this hub must be brought in line with this registration.
type Delivery struct {
	Hub          string
	Registration Registration
	Version      int64 // of the registration, when the row was written last
	Attempts     int   // how many failed
}

// Outbox is the durable list of deliveries: one row per hub and registration, however often the
// registration changes.
type Outbox interface {
	// Due leases up to limit deliveries to a hub whose time has come and that nobody else has leased.
	Due(ctx context.Context, hub string, lease Lease, limit int) ([]Delivery, error)
	// Settle ends a delivery: if the row still has d.Version it is deleted, the registration becomes what done
	// makes of it, and the further hubs that done names get rows, due at once; otherwise the row stays, leased anew, and is returned to be delivered
	// again. A row that another owner has leased meanwhile is left to it (nil, nil, nil). settled is the
	// registration as it is stored now.
	Settle(ctx context.Context, d Delivery, lease Lease, done Settled) (settled *Registration, again *Delivery, err error)
	// Postpone gives the lease back and makes the row due at a later time, with what went wrong.
	Postpone(ctx context.Context, d Delivery, owner string, due time.Time, reason string) error
	// Release ends the leases of an owner, which has died.
	Release(ctx context.Context, owner string) error
	// Pending counts the rows of the outbox.
	Pending(ctx context.Context) (int, error)
	// WaitingFor returns the rows of one registration, in order of hub.
	WaitingFor(ctx context.Context, id RegistrationID) ([]Waiting, error)
	// WaitingByHub counts the rows of each hub that has some.
	WaitingByHub(ctx context.Context) (map[string]int, error)
}

// Feed is the status of devices as the credential provider publishes it. Blocked and CertBlocked must
// not block or do I/O: they are asked on every request.
type Feed interface {
	Blocked(account cradle.AccountID, device cradle.DeviceID) (cradle.DeviceState, bool)
	CertBlocked(sha256 [32]byte) bool
	// Fresh reports whether the feed's knowledge is young enough to admit new work.
	Fresh(now time.Time) bool
}

package hub

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Store keeps the hubs. Each method is one transaction that is durable when it returns nil. Methods are safe for concurrent
// use, also by several processes over one database. A database that does not answer, or does not
// store, is kind Busy, and then nothing was stored or its answer was lost.
//
// What an attacker gains by controlling it: he can register thumbprints, and so connect as any device,
// read and forge telemetry. Keys of policies, devices and modules, which hubdb seals, he can replace and not read. The status feed's word is not in it.
type Store interface {
	// CreateHub stores a hub with its policies; Conflict when the name exists.
	CreateHub(ctx context.Context, name Name, policies []Policy, now time.Time) error
	// Hubs lists the names in order.
	Hubs(ctx context.Context) ([]Name, error)
	// Policies lists a hub's policies in order of name; NotFound when there is no such hub.
	Policies(ctx context.Context, name Name) ([]Policy, error)

	// Device reads one entry; NotFound.
	Device(ctx context.Context, hub Name, id cradle.DeviceID) (*Device, error)
	// Devices lists up to limit entries with ids after the given one, in byte order.
	Devices(ctx context.Context, hub Name, after cradle.DeviceID, limit int) ([]Device, error)
	// InsertDevice stores a new entry with its first modules; Conflict when the id exists. Here, and in what else takes notes:
	// these are put into the hub's stream in the same transaction, when it stores something.
	InsertDevice(ctx context.Context, hub Name, d *Device, modules []Module, notes ...Event) error
	// UpdateDevice replaces the entry whose ETag is given; NotFound, or Conflict when it has another ETag.
	UpdateDevice(ctx context.Context, hub Name, d *Device, etag string) error
	// CountDevices counts all entries, and the disabled ones among them.
	CountDevices(ctx context.Context, hub Name) (total, disabled int64, err error)
	// DeleteDevice removes the entry whose ETag is given, and its modules; NotFound, Conflict.
	DeleteDevice(ctx context.Context, hub Name, id cradle.DeviceID, etag string, notes ...Event) error

	Modules
	Entries
	Credentials
	Twins
	Sessions
	Mailbox
	Feedbacks
	Authorities

	// AppendEvents stores events, in order, behind all that are stored. Cursors become visible in
	// ascending order: a reader that has seen one will never find a smaller one appear later.
	AppendEvents(ctx context.Context, hub Name, events []Event) error
	// Events lists up to limit events behind a cursor.
	Events(ctx context.Context, hub Name, after Cursor, limit int) ([]Event, error)

	Stream
	Noticing
	Talk
}

// Cursor is a place in a hub's event stream: that of its newest event read. 0 is the beginning.
type Cursor int64

// Event is one telemetry message, or what the hub has to say itself (Notices).
type Event struct {
	Cursor     Cursor
	Device     cradle.DeviceID
	Enqueued   time.Time // the hub's clock when it took the message, in microseconds
	Properties iothub.Bag
	Body       []byte
}

// Policy is a named right to use a hub's REST APIs, proved by a SAS token of one of its keys.
type Policy struct {
	Name      string
	Primary   []byte
	Secondary []byte
	Rights    Rights
}

// Rights is what a policy allows.
type Rights int

// The rights, as Azure divides them.
const (
	RegistryRead Rights = 1 << iota
	RegistryWrite
	ServiceConnect // the event stream, twins, methods, messages to devices, queries
	DeviceConnect  // connect as any device that has symmetric keys
)

// Owner is the name of the policy with all rights.
const Owner = "iothubowner"

// builtin are the policies of a new hub.
var builtin = []Policy{
	{Name: Owner, Rights: RegistryRead | RegistryWrite | ServiceConnect | DeviceConnect},
	{Name: "registryReadWrite", Rights: RegistryRead | RegistryWrite},
	{Name: "registryRead", Rights: RegistryRead},
	{Name: "service", Rights: ServiceConnect},
	{Name: "device", Rights: DeviceConnect},
}

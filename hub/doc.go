// Package hub is the cloud application's front door: which devices and modules exist and how they prove themselves
// (the registry), which of them are connected (sessions), what they said (events), what both sides keep of each other
// (twins), and what is said to them (methods, messages). It knows no protocol; hub/hubserver speaks MQTT and REST
// for it, hub/hubdb keeps its tables.
//
// One installation holds several hubs by name, each with its own devices, keys and event stream.
//
// Who logs in is judged by judge, a pure function: a SAS token of one of the identity's keys, the thumbprint of its
// certificate (whoever writes the registry has judged the chain), or a certificate of a CA that the hub trusts. At each
// connection, resumed TLS ones too, Connect reads the registry anew and asks the status feed (DESIGN §4.8), which knows
// a device by its certificate's organization (account) and common name. A feed that has gone stale admits nobody.
// What changes while a device is connected ends the connection: StatusChanged, every registry write and the removal of a
// CA look at the session again. The order of checks and of entering a session is such that a change is seen by one or
// the other; see table.enter.
//
// Two thumbprint slots carry a certificate renewal (DESIGN §4.7): the registry's writer adds the next
// one as secondary, the first Connect accepted with it makes it the primary, and the old one ends.
//
// Queries over registry and twins are package query's; this package feeds it the entries a piece at a time.
//
// Events are stored before they are acknowledged, in one order for each hub; readers keep their own place in it (a Cursor),
// and an event has an id for good. Keep deletes the oldest by age and size, and waits for relays, who pass events on to
// another system (hub/natsrelay). No reader holds up a device. A hub may have changes of its twins and its registry in the
// stream too, put there in their own transactions, and connections (Notices).
//
// What a device hears goes to its session's Sink, which never blocks. Changes of a twin are handed over in their order:
// whoever changes or reads one for the device holds the key's lock until it is in the sink. Messages are locked in the
// store while they are out, and removed by the device's acknowledgement; a new connection voids the locks of the one before.
//
// Processes over one store tell each other what each other's sessions should know (Listen, talk.go), as words that nobody keeps:
// a session that may have missed one is ended, and its device finds everything when it comes again.
package hub

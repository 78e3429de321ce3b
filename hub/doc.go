// Package hub is the cloud application's front door: which devices exist and with which certificates
// (the registry), which of them are connected (sessions), and what they said (events). It knows no
// protocol; hub/hubserver speaks MQTT and REST for it, hub/hubdb keeps its tables.
//
// One installation holds several hubs by name, each with its own devices, keys and event stream.
//
// A device is admitted by the thumbprint of its certificate alone: whoever writes the registry has
// judged the certificate's chain. At each connection, resumed TLS ones too, Connect checks validity at
// the hub's clock, the common name, the registry entry and the status feed (DESIGN §4.8), which knows a
// device by organization (account) and common name. A feed that has gone stale admits nobody.
// What changes while a device is connected ends the connection: StatusChanged and every registry write
// look at the session again. The order of checks and of entering a session is such that a change is
// seen by one or the other; see table.enter.
//
// Two thumbprint slots carry a certificate renewal (DESIGN §4.7): the registry's writer adds the next
// one as secondary, the first Connect accepted with it makes it the primary, and the old one ends.
package hub

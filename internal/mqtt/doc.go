// Package mqtt is MQTT 3.1.1 (OASIS Standard) on one connection: a codec that bounds what it reads,
// and a small client. It knows no broker, no topic meaning and no transport.
//
// Read takes one packet off a connection and never allocates more than the caller's limit, which
// servers keep small until the peer is authenticated. The body is then decoded by type (ParseConnect,
// ParsePublish …); decoded strings are checked as the specification demands (§1.5.3) and byte slices
// alias the packet's body. Each decoded type appends itself to a buffer again, to the same bytes.
//
// QoS 2 is decoded as far as PUBLISH; its handshake is not offered.
package mqtt

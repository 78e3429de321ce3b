// Package device is the agent in a device, from power-on to retirement: it obtains the LDevID and the
// operational certificate with evidence from its TPM, registers with the provisioning service,
// connects to its hub, sends numbered telemetry, and renews for years.
//
// The pieces. A journal (journal.go, record.go) holds what the device has and is doing; it is written
// before every act, so that the device may die at any instruction. plan.go looks at the journal and the time and
// says what is to be done next; nothing else decides. enrol.go gets a certificate, maintain.go
// registers it, link.go keeps the hub connected, telemetry.go numbers messages. trust.go says whom to believe and
// clock.go what time it is. One goroutine maintains credentials, one the connection to the hub,
// one makes telemetry; they share the journal under one lock.
//
// What is trusted: the TPM; the two sets of anchors that the line wrote (services for TLS and time, account for
// certificates); settings. What is not: the system clock, the network, and anything a server says
// that does not chain to those anchors.
//
// Renewal cannot lock the device out. The operational lineage has two slots. A renewed certificate goes into the
// free one, is registered, and must have been accepted by the hub before the old slot is given up; until
// then both are kept and either connects. A refused renewal climbs a ladder: the certificate itself, then the
// LDevID, then (if the LDevID is not accepted as such) the IDevID; refused everywhere, the device
// keeps its credentials and asks again with long pauses.
//
// A lost reply is asked for again with the very same request, which the journal holds (DESIGN §4.7).
//
// The clock (DESIGN §4.3). Time is max(clock, floor); the floor is the latest of the build, the making of the
// settings, the IDevID's notBefore, the notBefore of every certificate issued to us, and the last time
// statement. At start, and whenever certificates look expired or not yet valid, the provider is asked for a signed
// statement of the time; only that request's TLS ignores validity, and its connection is
// kept for the enrolment that follows if the server's chain holds at the stated time. After it the system clock is not looked at any more:
// time is the statement plus what has passed since. Without a statement a certificate that is not
// valid yet is accepted, because the clock may be behind, and an expired one is not: with a clock far
// in the future and nobody to vouch for the time the device waits, reports it, and deletes nothing.
package device

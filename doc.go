// Package cradle is the vocabulary of the system: the identifiers, states, tiers, object
// identifiers and error kinds that every other package shares. It imports only the standard library.
//
// Cradle provisions fleets of IoT devices without a human touching one. Trust passes through
// hands ("custodians"); each is one top-level folder, and no custodian imports another:
//
//	provider/       the credential provider: accounts, orders, issuance, the log
//	oem/            the device maker's line: personalises devices in their TPM
//	device/         the device: journal, attestation, enrolment, renewal
//	provisioning/   the provisioning service: Azure DPS device and service API
//	hub/            the cloud front door: MQTT, device registry, events
//
// They meet only in protocol/ (messages and clients of what crosses between them) and in keys/
// (signers and attesters over hardware). internal/ holds tricks without domain meaning. cmd/ wires
// everything. imports_test.go holds the table of allowed imports. docs/architecture.md follows one
// device through the files; docs/design.md is what comments cite as DESIGN.
package cradle

package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// CA is a CA of an account, or the key of one that waits for its certificate.
type CA struct {
	Kind        string       `json:"kind"` // root, onboarding, operational, unproved, registration or idevid
	Class       cradle.Class `json:"class"`
	OEM         cradle.OEMID `json:"oem,omitempty"`
	State       string       `json:"state"` // active, superseded, or waiting for a certificate
	Name        string       `json:"name"`
	Algorithm   string       `json:"algorithm"`             // of its key: ec-p256 ...
	Store       string       `json:"store,omitempty"`       // where its key is: file, pkcs11; empty: elsewhere
	Fingerprint string       `json:"fingerprint,omitempty"` // SHA-256 of the certificate
	NotAfter    *time.Time   `json:"not_after,omitempty"`
	PEM         string       `json:"pem,omitempty"`
	Chain       string       `json:"chain,omitempty"`   // PEM: from its issuer up to the root
	Crosses     string       `json:"crosses,omitempty"` // PEM: the same key certified by another root; of a root: it and its predecessors by each other
}

// CARole names one CA of an account.
type CARole struct {
	Kind  string       `json:"kind"`
	Class cradle.Class `json:"class"`
	OEM   cradle.OEMID `json:"oem,omitempty"`
}

// CARequest asks for the PKCS#10 request of a CA.
type CARequest struct {
	CARole
	NewKey bool `json:"new_key,omitempty"` // for a new key, although the CA has one
}

// CASigningRequest is a PKCS#10 request.
type CASigningRequest struct {
	CARole
	PEM string `json:"pem"`
}

// InstallCAs puts certificates of CAs in place.
type InstallCAs struct {
	PEM string `json:"pem"` // the CAs' certificates and all above them, in any order
}

// ChangedCAs says what became of CAs, and what to think of now.
type ChangedCAs struct {
	CAs      []CA     `json:"cas,omitempty"`
	Crosses  []string `json:"crosses,omitempty"` // PEM
	Warnings []string `json:"warnings,omitempty"`
}

// CrossRoots cross-signs the roots of a class.
type CrossRoots struct {
	Class cradle.Class `json:"class"`
}

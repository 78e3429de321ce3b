package dpsserver

import (
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// FillWaiting has as many register calls wait for their outcome as may.
func (h *Handler) FillWaiting() {
	for range cap(h.waiting) {
		h.waiting <- struct{}{}
	}
}

// What FuzzReadImport compares.
var (
	ReadImport        = readImport
	EnrollmentRequest = func(b dps.Enrollment) (provisioning.EnrollmentRequest, error) { return enrollmentRequest(b, nil) }
)

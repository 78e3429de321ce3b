package dpsserver

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// importEnrollments takes individual enrolments as JSON lines, in one transaction. Those that exist already are left as they
// are, so that a client may send a request again whose answer it did not get.
func (h *Handler) importEnrollments(ctx context.Context, q *request) (*reply, error) {
	rs, err := readImport(q.body)
	if err != nil {
		return nil, err
	}
	added, err := h.svc.AddEnrollments(ctx, rs)
	if err != nil {
		return nil, err
	}
	h.log.Info("individual enrolments imported", "added", added, "present", len(rs)-added)
	return &reply{status: http.StatusOK, body: dps.ImportResult{Added: added, Present: len(rs) - added}}, nil
}

// readImport reads the lines of an import request: each an enrolment of the service API. Empty lines do not count.
func readImport(body []byte) ([]provisioning.EnrollmentRequest, error) {
	var rs []provisioning.EnrollmentRequest
	n := 0
	for line := range bytes.Lines(body) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if len(rs) == dps.MaxImportRows {
			return nil, cradle.Errorf(cradle.TooLarge, "more than %d enrolments in one request", dps.MaxImportRows)
		}
		var b dps.Enrollment
		if err := json.Unmarshal(line, &b); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "line %d is not the JSON of an individual enrolment: %v", n, strictjson.Reason(err))
		}
		r, err := enrollmentRequest(b, nil)
		if err != nil {
			detail, hint := cradle.Public(err)
			return nil, &cradle.Error{Kind: cradle.KindOf(err), Detail: "enrolment " + b.RegistrationID + ": " + detail, Hint: hint, Err: err}
		}
		rs = append(rs, r)
	}
	return rs, nil
}

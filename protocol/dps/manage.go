package dps

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/cradle-iot/cradle"
)

// Enrollment reads an individual enrolment; cradle.NotFound when there is none.
func (s *Service) Enrollment(ctx context.Context, id string) (*Enrollment, error) {
	e := new(Enrollment)
	return e, s.do(ctx, http.MethodGet, "/enrollments/"+url.PathEscape(id), "", nil, e)
}

// PutEnrollment creates an individual enrolment, or replaces the one whose ETag e carries. It returns what is stored.
func (s *Service) PutEnrollment(ctx context.Context, e Enrollment) (*Enrollment, error) {
	out := new(Enrollment)
	return out, s.do(ctx, http.MethodPut, "/enrollments/"+url.PathEscape(e.RegistrationID), e.ETag, e, out)
}

// DeleteEnrollment deletes an individual enrolment; an empty etag deletes any version.
func (s *Service) DeleteEnrollment(ctx context.Context, id, etag string) error {
	return s.do(ctx, http.MethodDelete, "/enrollments/"+url.PathEscape(id), etag, nil, nil)
}

// Enrollments returns a page of individual enrolments, in order of id, and the token of the next one, empty at the end.
func (s *Service) Enrollments(ctx context.Context, continuation string) ([]Enrollment, string, error) {
	var out []Enrollment
	h := http.Header{"X-Ms-Max-Item-Count": {"200"}}
	if continuation != "" {
		h.Set("x-ms-continuation", continuation)
	}
	answer, err := s.call(ctx, http.MethodPost, "/enrollments/query", h, Query{Query: "*"}, &out)
	return out, answer.Get("x-ms-continuation"), err
}

// Bounds of one import request.
const (
	MaxImport     = 4 << 20 // bytes
	MaxImportRows = 2000
)

// ImportResult says what became of the lines of an import request.
type ImportResult struct {
	Added   int `json:"added"`
	Present int `json:"present"` // were enrolled already, and stay as they are
}

// Import adds individual enrolments, all in one transaction: those that exist already stay as they are, so that it may be
// repeated. It is not Azure's. One that is refused is named by the error, and nothing is stored.
func (s *Service) Import(ctx context.Context, lines []json.RawMessage) (ImportResult, error) {
	if len(lines) > MaxImportRows {
		return ImportResult{}, cradle.Errorf(cradle.Invalid, "%d enrolments at once, at most %d", len(lines), MaxImportRows)
	}
	var b bytes.Buffer
	for _, l := range lines {
		b.Write(l)
		b.WriteByte('\n')
	}
	var out ImportResult
	_, err := s.call(ctx, http.MethodPost, "/enrollments/import", nil, b.Bytes(), &out)
	return out, err
}

// call signs and sends a request; body may be the bytes themselves.
func (s *Service) call(ctx context.Context, method, path string, h http.Header, body, out any) (http.Header, error) {
	now, hc := time.Now, s.HTTP
	if s.Now != nil {
		now = s.Now
	}
	if hc == nil {
		hc = http.DefaultClient
	}
	if h == nil {
		h = http.Header{}
	}
	h.Set("Authorization", s.Conn.Token(now(), time.Hour))
	return roundTrip(ctx, hc, method, s.Conn.BaseURL()+path+"?api-version="+ServiceAPIVersion, h, body, out)
}

package dpsserver

import (
	"net/http"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// etagRule is what If-Match would say of an entry with this etag, by the mode of a bulk operation.
type etagRule func(etag string) (string, error)

// bulk makes each change by itself: one that is refused leaves the others as they are.
func bulk(q *request, count func(*dps.Bulk) int, do func(b *dps.Bulk, i int, delete bool, match etagRule) dps.BulkError) (*reply, error) {
	var b dps.Bulk
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	n := count(&b)
	if n == 0 || n > dps.MaxBulk {
		return nil, cradle.Errorf(cradle.Invalid, "a bulk operation has 1 to %d entries, not %d", dps.MaxBulk, n).
			WithHint("for many more at once there is cradle enrollment import")
	}
	mode := strings.ToLower(b.Mode)
	var match etagRule
	switch mode {
	case "create":
		match = func(string) (string, error) { return "", nil }
	case "update":
		match = func(string) (string, error) { return "*", nil }
	case "updateifmatchetag":
		match = func(etag string) (string, error) {
			if bare(etag) == "" {
				return "", cradle.Errorf(cradle.Invalid, "updateIfMatchETag needs the etag of each entry").WithHint("read the entry and send its etag along, or use update")
			}
			return bare(etag), nil
		}
	case "delete": // with the entry's etag where it has one
		match = func(etag string) (string, error) { return bare(etag), nil }
	default:
		return nil, cradle.Errorf(cradle.Invalid, "bulk mode %.40q: use create, update, updateIfMatchETag or delete", b.Mode)
	}
	out := dps.BulkResult{IsSuccessful: true, Errors: []dps.BulkError{}}
	for i := range n {
		if e := do(&b, i, mode == "delete", match); e.ErrorCode != 0 {
			out.IsSuccessful, out.Errors = false, append(out.Errors, e)
		}
	}
	return &reply{status: http.StatusOK, body: out}, nil
}

func bulkError(err error) dps.BulkError {
	if err == nil {
		return dps.BulkError{}
	}
	_, code := status(err)
	message, hint := cradle.Public(err)
	if hint != "" {
		message += "; " + hint
	}
	return dps.BulkError{ErrorCode: code, ErrorStatus: message}
}

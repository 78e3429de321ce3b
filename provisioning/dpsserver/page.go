package dpsserver

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

// page reads the paging headers, and the query, of which only "everything" is understood.
func page(q *request) (after string, limit int, err error) {
	var b dps.Query
	if err := q.decode(&b); err != nil {
		return "", 0, err
	}
	switch text := strings.ToLower(strings.TrimSpace(b.Query)); {
	case text == "", text == "*", strings.HasPrefix(text, "select * from ") && !strings.Contains(text, " where "):
	default:
		return "", 0, cradle.Errorf(cradle.Invalid, "query %.100q is not supported", b.Query).WithHint(`use "*"`)
	}
	limit = defaultPage
	if s := q.Header.Get("x-ms-max-item-count"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 {
			return "", 0, cradle.Errorf(cradle.Invalid, "x-ms-max-item-count %.20q is not a positive number", s)
		}
	}
	token, err := base64.RawURLEncoding.DecodeString(q.Header.Get("x-ms-continuation"))
	if err != nil {
		return "", 0, cradle.Errorf(cradle.Invalid, "x-ms-continuation is not one that was given out here")
	}
	return string(token), min(limit, maxPage), nil
}

// pageReply leaves x-ms-continuation out on the last page: an empty one would count as more.
func pageReply(items any, kind, last string, more bool) *reply {
	h := http.Header{"X-Ms-Item-Type": {kind}}
	if more {
		h.Set("x-ms-continuation", base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
	return &reply{status: http.StatusOK, body: items, header: h}
}

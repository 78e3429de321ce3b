package dpsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// methodError is a path that exists, asked in the wrong way.
type methodError struct{ method, allow string }

func (e *methodError) Error() string {
	return fmt.Sprintf("method %.20s is not allowed here; allowed: %s", e.method, e.allow)
}

// status maps an error to HTTP and to Azure's error code, of which the first three digits are the HTTP
// status. 403 is avoided: the SDKs take it for "too many devices".
func status(err error) (httpStatus, code int) {
	var m *methodError
	if errors.As(err, &m) {
		return http.StatusMethodNotAllowed, 405000
	}
	if errors.Is(err, provisioning.ErrETag) {
		return http.StatusPreconditionFailed, 412001
	}
	switch cradle.KindOf(err) {
	case cradle.Invalid:
		return http.StatusBadRequest, 400000
	case cradle.Unauthorized, cradle.Forbidden:
		return http.StatusUnauthorized, 401002
	case cradle.NotFound:
		return http.StatusNotFound, 404001
	case cradle.Conflict:
		return http.StatusConflict, 409001
	case cradle.TooLarge:
		return http.StatusRequestEntityTooLarge, 413001
	case cradle.Busy:
		if retryAfter(err) > 0 {
			return http.StatusTooManyRequests, 429001
		}
		return http.StatusServiceUnavailable, 503001
	}
	return http.StatusInternalServerError, 500001
}

// refuse logs a refusal and writes it.
func (h *Handler) refuse(w http.ResponseWriter, q *request, tracking string, err error) {
	rep := h.refusal(tracking, err)
	h.logRefusal(q.Context(), rep.status, tracking, err, "method", q.Method, "path", q.URL.Path, "id", q.id, "remote", q.RemoteAddr)
	write(w, rep)
}

// refusal is an error as devices and tools are told it, on every transport.
func (h *Handler) refusal(tracking string, err error) *reply {
	httpStatus, code := status(err)
	message, hint := cradle.Public(err)
	var m *methodError
	if errors.As(err, &m) {
		message, hint = m.Error(), ""
	}
	if hint != "" {
		message += "; " + hint
	}
	rep := &reply{status: httpStatus, header: http.Header{}, body: dps.Error{ErrorCode: code, TrackingID: tracking, Message: message, TimestampUTC: dps.Time{Time: time.Now()}}}
	if wait := retryAfter(err); wait > 0 {
		rep.retryAfter = strconv.Itoa(int((wait + time.Second - 1) / time.Second))
	} else if httpStatus == http.StatusServiceUnavailable {
		rep.retryAfter = strconv.Itoa(h.c.RetryBusy)
	}
	rep.header.Set(dps.HeaderErrorCode, strconv.Itoa(code))
	var challenge *provisioning.TPMChallenge
	if errors.As(err, &challenge) {
		rep.body = dps.Challenge{Message: message, AuthenticationKey: challenge.AuthenticationKey, KeyName: challenge.KeyName}
	}
	return rep
}

// retryAfter is when the error says to come again; zero when it does not.
func retryAfter(err error) time.Duration {
	var e *cradle.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// logRefusal writes the one log line of a refusal.
func (h *Handler) logRefusal(ctx context.Context, status int, tracking string, err error, about ...any) {
	level := slog.LevelInfo
	if status >= 500 {
		level = slog.LevelWarn
	}
	h.log.Log(ctx, level, "request refused", append(about, "status", status, "reason", err.Error(), "tracking_id", tracking)...)
}

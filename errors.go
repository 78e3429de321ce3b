package cradle

import (
	"errors"
	"fmt"
	"time"
)

// Kind says what a caller may do about an error. One function per protocol maps kinds to answers.
type Kind int

// The kinds. An error without a kind is Internal, and its text never leaves the server.
const (
	Internal     Kind = iota
	Invalid           // the request is wrong; sending it again will not help
	Unauthorized      // who asks is not known or not proved
	Forbidden         // who asks is known and may not
	NotFound          // there is no such thing
	Conflict          // the state has moved; look again before retrying
	Busy              // not now; retry after a while (HTTP 503 with Retry-After)
	TooLarge          // over a limit
	Pending           // waits for an operator's approval; send the same request again (HTTP 202 with Retry-After)
)

var kindNames = [...]string{"internal", "invalid", "unauthorized", "forbidden", "not_found", "conflict", "busy", "too_large", "pending"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// ParseKind is the inverse of Kind.String; unknown names are Internal.
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Error is an error that may be shown to the caller: Detail says what was wrong, Hint what to do next.
type Error struct {
	Kind   Kind
	Detail string
	Hint   string // may be empty
	Err    error  // private cause, for the log; may be nil
	// RetryAfter is when to come again, for Busy and Pending; zero leaves it to whoever answers.
	RetryAfter time.Duration
}

// Error is the detail alone: a cause given by %w is already part of it.
func (e *Error) Error() string { return e.Detail }

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose text is safe to show. An operand of %w becomes the cause as well as
// part of the text; wrap only what may be shown.
func Errorf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint returns a copy of e with a hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// After returns a copy of e that says when to come again.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// RetryAfter returns when the first Error in err's chain says to come again; zero when it does not.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// KindOf returns the kind of the first Error in err's chain, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Public returns the detail and hint that may leave the server. For an internal error both are general.
func Public(err error) (detail, hint string) {
	var e *Error
	if errors.As(err, &e) && e.Kind != Internal {
		return e.Detail, e.Hint
	}
	return "internal error", "the operator finds the cause in the server's log"
}

// Package cli is how every command speaks to the person or program that called it: results on
// stdout, for people or as JSON; errors on stderr as one line and a hint; exit status 0, 1 or 2. It
// uses the standard library alone, so that the device agent may use it too. Package verbs beside it parses command
// lines.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"unicode"

	"github.com/cradle-iot/cradle"
)

// The exit statuses.
const (
	Done    = 0
	Failed  = 1 // refused or failed
	Misused = 2 // wrong usage
)

// UsageError marks an error of how a command was called; its exit status is Misused.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Out is where a command's results go.
type Out struct {
	W    io.Writer // stdout
	Err  io.Writer // stderr: warnings and progress
	JSON bool      // print JSON instead of text
}

// Print writes one result: v as one line of JSON, or what text writes. A value printed several times
// is JSON lines.
func (o *Out) Print(v any, text func(w io.Writer)) error {
	if o.JSON {
		e := json.NewEncoder(o.W)
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	w := &writer{w: o.W}
	text(w)
	return w.err
}

// Fields writes "name: value" lines with the values aligned; pairs with an empty value are left out.
func Fields(w io.Writer, pairs ...string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s:\t%s\n", pairs[i], Line(pairs[i+1]))
		}
	}
	t.Flush()
}

// Table writes rows under headings, aligned.
func Table(w io.Writer, headings []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(headings, "\t")))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// Warnf writes a line for people to stderr.
func (o *Out) Warnf(format string, args ...any) {
	fmt.Fprintln(o.Err, Line(fmt.Sprintf(format, args...)))
}

// Fail renders an error as one line and a hint, and returns the exit status. A nil error is Done.
func Fail(stderr io.Writer, program string, err error) int {
	if err == nil {
		return Done
	}
	if errors.Is(err, context.Canceled) {
		err = cradle.Errorf(cradle.Busy, "interrupted")
	}
	fmt.Fprintf(stderr, "%s: %s\n", program, Line(err.Error()))
	if h := Hint(err); h != "" {
		fmt.Fprintf(stderr, "hint: %s\n", Line(h))
	}
	var u *UsageError
	if errors.As(err, &u) {
		return Misused
	}
	return Failed
}

// Hint is the first hint in an error's chain.
func Hint(err error) string {
	for err != nil {
		var e *cradle.Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// Line makes text one line that is safe for a terminal.
func Line(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// Context is cancelled by SIGINT and SIGTERM; a second signal ends the program at once.
func Context() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// writer remembers the first error, so that text functions need not look.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.w.Write(b)
	w.err = err
	return n, err
}

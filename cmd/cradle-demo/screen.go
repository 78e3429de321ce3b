package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradle-iot/cradle/internal/cli"
)

// plainEvery is how often progress is printed where there is no terminal.
const plainEvery = 5 * time.Second

// screen shows the story: lines that stay, and below them one line of progress, which a terminal
// overwrites. Without a terminal the progress is an ordinary line every few seconds.
type screen struct {
	mu    sync.Mutex
	w     io.Writer
	term  *os.File // nil without a terminal
	live  string   // what stands in the progress line
	shown time.Time
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok && os.Getenv("TERM") != "dumb" {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			s.term = f
		}
	}
	return s
}

// say prints a line that stays.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.w, format+"\n", args...)
	s.draw()
}

// chapter begins a part of the story.
func (s *screen) chapter(title string) { s.say("\n%s", s.bold(title)) }

// command shows a command line before it is run.
func (s *screen) command(line string) { s.say("  $ %s", line) }

// outcome shows the first lines of what a command printed.
func (s *screen) outcome(text string, lines int) {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for _, l := range all[:min(lines, len(all))] {
		if l = cli.Line(l); l != "" {
			s.say("      %s", l)
		}
	}
}

func (s *screen) bold(text string) string {
	if s.term == nil {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

// progress shows how far things are. It may be called as often as one likes.
func (s *screen) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if s.term != nil {
		if text != s.live {
			s.clear()
			s.live = text
			s.draw()
		}
		return
	}
	if now := time.Now(); text != s.live && now.Sub(s.shown) >= plainEvery {
		s.live, s.shown = text, now
		fmt.Fprintf(s.w, "  %s\n", text)
	}
}

// settle ends the progress line; text, when there is some, stays.
func (s *screen) settle(format string, args ...any) {
	s.mu.Lock()
	s.clear()
	s.live, s.shown = "", time.Now()
	s.mu.Unlock()
	if format != "" {
		s.say("  "+format, args...)
	}
}

func (s *screen) clear() {
	if s.term != nil && s.live != "" {
		io.WriteString(s.w, "\r\x1b[K")
	}
}

func (s *screen) draw() {
	if s.term == nil || s.live == "" {
		return
	}
	width := 79
	if ws, err := unix.IoctlGetWinsize(int(s.term.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 10 {
		width = int(ws.Col) - 1
	}
	line := []rune("  " + s.live)
	if len(line) > width {
		line = append(line[:width-3], '.', '.', '.')
	}
	io.WriteString(s.w, string(line))
}

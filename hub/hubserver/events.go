package hubserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// signOfLife is how often a follower of the event stream gets at least an empty line.
const signOfLife = 10 * time.Second

// errEnough ends Follow when the limit is reached.
var errEnough = errors.New("limit reached")

// eventStream is what a reader of events asked for.
type eventStream struct {
	from   hub.Cursor
	limit  int64 // 0: no limit
	follow bool
	sse    bool // server-sent events (HTML §9.2), else JSON lines
	device cradle.DeviceID
	module iothub.ModuleID
}

// parseStream reads GET /events?from=&limit=&follow=1&device=&module= and the headers of server-sent events, which
// follow unless follow=0, and of which Last-Event-ID goes before from: a browser sends both when it comes again.
func parseStream(r *http.Request) (e eventStream, err error) {
	q := r.URL.Query()
	e.sse = strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	start := q.Get("from")
	if last := r.Header.Get("Last-Event-ID"); e.sse && last != "" {
		start = last
	}
	from, err1 := number(start)
	limit, err2 := number(q.Get("limit"))
	follow, err3 := number(q.Get("follow"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return e, cradle.Errorf(cradle.Invalid, "from, limit, follow and Last-Event-ID must be numbers from 0: %v", err)
	}
	e.from, e.limit, e.follow = hub.Cursor(from), limit, follow != 0 || e.sse && q.Get("follow") == ""
	e.device, e.module = cradle.DeviceID(q.Get("device")), iothub.ModuleID(q.Get("module"))
	return e, nil
}

func (e *eventStream) wants(ev *hub.Event) bool {
	if e.device != "" && ev.Device != e.device {
		return false
	}
	module, _ := ev.Properties.Get(iothub.PropModule)
	return e.module == "" || string(e.module) == module
}

// events answers GET /events; see parseStream.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	req, err := s.authorize(r, hub.ServiceConnect)
	var e eventStream
	if err == nil {
		e, err = parseStream(r)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	rc := http.NewResponseController(w)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // JSON bodies stay as they are
	left, started, last := e.limit, false, time.Now()
	at, told := e.from, e.from // read up to, and known by the reader
	flush := func() error {
		if !started {
			w.Header().Set("Content-Type", "application/x-ndjson")
			if e.sse {
				w.Header().Set("Content-Type", "text/event-stream")
			}
			w.Header().Set("Cache-Control", "no-store")
		}
		rc.SetWriteDeadline(time.Now().Add(writeTime)) // not every writer can; then the server's own holds
		started, last = true, time.Now()
		_, err := w.Write(out.Bytes())
		out.Reset()
		if err != nil {
			return err
		}
		return rc.Flush()
	}
	write := func(es []hub.Event) error {
		for i := range es {
			at = es[i].Cursor
			if !e.wants(&es[i]) {
				continue
			}
			if e.sse {
				out.WriteString("id: " + strconv.FormatInt(int64(at), 10) + "\ndata: ")
			}
			if err := enc.Encode(es[i].Wire(req.hub)); err != nil { // one line
				return err
			}
			if e.sse {
				out.WriteByte('\n')
			}
			told = at
			if left--; left == 0 {
				return errors.Join(flush(), errEnough)
			}
			if out.Len() >= 64<<10 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if out.Len() == 0 {
			if started && time.Since(last) < signOfLife {
				return nil
			}
			if e.sse && told != at { // an event without data only moves the place from which the reader goes on
				told = at
				out.WriteString("id: " + strconv.FormatInt(int64(at), 10) + "\n\n")
			} else if e.sse {
				out.WriteString(":\n\n")
			} else {
				out.WriteString("\n")
			}
		}
		return flush()
	}
	if e.follow {
		err = s.hub.Follow(r.Context(), req.hub, e.from, write)
	} else {
		err = s.hub.Scan(r.Context(), req.hub, e.from, write)
	}
	switch {
	case err == nil || errors.Is(err, errEnough) || r.Context().Err() != nil:
	case !started:
		s.fail(w, r, err)
	default: // the client must not take what it has for all there is
		s.log.Warn("event stream broke off", "hub", req.hub, "err", err)
		panic(http.ErrAbortHandler)
	}
}

func number(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// eventSources says what the stream has besides telemetry.
func (s *Server) eventSources(r *request) (answer, error) {
	n, err := s.hub.Notices(r.Context(), r.hub)
	return answer{body: iothub.EventSources{Sources: n.Names()}}, err
}

func (s *Server) setEventSources(r *request) (answer, error) {
	var in iothub.EventSources
	if err := r.decode("the sources of events", &in); err != nil {
		return answer{}, err
	}
	n, err := hub.ParseNotices(in.Sources)
	if err == nil {
		err = s.hub.SetNotices(r.Context(), r.hub, n)
	}
	return answer{body: iothub.EventSources{Sources: n.Names()}}, err
}

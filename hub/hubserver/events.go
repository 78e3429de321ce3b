package hubserver

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
)

// signOfLife is how often a follower of the event stream gets at least an empty line.
const signOfLife = 10 * time.Second

// errEnough ends Follow when the limit is reached.
var errEnough = errors.New("limit reached")

// events answers GET /events?hub=&from=&limit=&follow=1 with JSON lines.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	req, err := s.authorize(r, hub.ServiceConnect)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	q := r.URL.Query()
	from, err1 := number(q.Get("from"))
	limit, err2 := number(q.Get("limit"))
	follow, err3 := number(q.Get("follow"))
	if err := errors.Join(err1, err2, err3); err != nil {
		s.fail(w, r, cradle.Errorf(cradle.Invalid, "from, limit and follow must be numbers from 0: %v", err))
		return
	}
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // JSON bodies stay as they are
	left, started, last := limit, false, time.Now()
	write := func(es []hub.Event) error {
		if !started {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.Header().Set("Cache-Control", "no-store")
		}
		if len(es) == 0 && started && time.Since(last) < signOfLife {
			return nil
		}
		rc.SetWriteDeadline(time.Now().Add(writeTime)) // not every writer can; then the server's own holds
		started, last = true, time.Now()
		for i := range es {
			e := &es[i]
			if err := enc.Encode(e.Wire(req.hub)); err != nil {
				return err
			}
			if left--; left == 0 {
				return errEnough
			}
		}
		if len(es) == 0 {
			w.Write([]byte("\n"))
		}
		return rc.Flush()
	}
	if follow != 0 {
		err = s.hub.Follow(r.Context(), req.hub, hub.Cursor(from), write)
	} else {
		err = s.hub.Scan(r.Context(), req.hub, hub.Cursor(from), write)
	}
	switch {
	case err == nil || err == errEnough || r.Context().Err() != nil:
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

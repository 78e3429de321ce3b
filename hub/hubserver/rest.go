package hubserver

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Limits of REST.
const (
	maxRequest = 64 << 10 // bytes of a request body
	maxPage    = 1000     // entries of a list
)

// ServeHTTP implements http.Handler: /devices… and /events.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) routes() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("GET /devices", s.rest(hub.RegistryRead, s.list))
	m.HandleFunc("GET /devices/{$}", s.rest(hub.RegistryRead, s.list))
	m.HandleFunc("GET /devices/{id}", s.rest(hub.RegistryRead, s.get))
	m.HandleFunc("PUT /devices/{id}", s.rest(hub.RegistryWrite, s.put))
	m.HandleFunc("DELETE /devices/{id}", s.rest(hub.RegistryWrite, s.delete))
	m.HandleFunc("GET /devices/{id}/modules", s.rest(hub.RegistryRead, s.modules))
	m.HandleFunc("GET /events", s.events)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, cradle.Errorf(cradle.NotFound, "%s %.200s is not served here", r.Method, r.URL.Path))
	})
	return m
}

// request is an authorised request.
type request struct {
	*http.Request
	hub hub.Name
}

// answer is what a handler wants written; a nil body means 204.
type answer struct {
	body   any
	header map[string]string
}

// rest authorises and writes the one answer.
func (s *Server) rest(need hub.Rights, fn func(*request) (answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		req, err := s.authorize(r, need)
		var a answer
		if err == nil {
			a, err = fn(req)
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		for k, v := range a.header {
			w.Header().Set(k, v)
		}
		if a.body == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		b, err := json.Marshal(a.body)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Write(b)
	}
}

// authorize finds the hub, by the parameter hub or by the host name, and checks the SAS token.
func (s *Server) authorize(r *http.Request, need hub.Rights) (*request, error) {
	name := hub.Name(r.URL.Query().Get("hub"))
	if name == "" {
		var err error
		if name, err = s.hub.Resolve(r.Context(), r.Host, s.def); err != nil {
			return nil, err
		}
	}
	token := r.Header.Get("Authorization")
	if token == "" {
		return nil, cradle.Errorf(cradle.Unauthorized, "no Authorization header").
			WithHint("send a SharedAccessSignature of a policy of hub %s", name)
	}
	hosts := []string{r.Host}
	if h, _, err := net.SplitHostPort(r.Host); err == nil {
		hosts = append(hosts, h)
	}
	hosts = append(hosts, string(name))
	if err := s.hub.Authorize(r.Context(), name, token, need, hosts, strings.TrimSuffix(r.URL.Path, "/")); err != nil {
		return nil, err
	}
	return &request{r, name}, nil
}

func (s *Server) get(r *request) (answer, error) {
	d, err := s.hub.GetDevice(r.Context(), r.hub, cradle.DeviceID(r.PathValue("id")))
	if err != nil {
		return answer{}, err
	}
	return deviceAnswer(d), nil
}

func deviceAnswer(d *iothub.Device) answer {
	return answer{body: d, header: map[string]string{"ETag": iothub.QuoteETag(d.ETag)}}
}

func (s *Server) put(r *request) (answer, error) {
	var d iothub.Device
	if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return answer{}, cradle.Errorf(cradle.TooLarge, "request is larger than %d bytes", big.Limit)
		}
		return answer{}, cradle.Errorf(cradle.Invalid, "device is not JSON as expected: %v", err)
	}
	if id := cradle.DeviceID(r.PathValue("id")); d.DeviceID != id {
		return answer{}, cradle.Errorf(cradle.Invalid, "deviceId %.128q is not that of the path, %.128q", d.DeviceID, id)
	}
	out, err := s.hub.PutDevice(r.Context(), r.hub, &d, iothub.UnquoteETag(r.Header.Get("If-Match")))
	if err != nil {
		return answer{}, err
	}
	return deviceAnswer(out), nil
}

func (s *Server) delete(r *request) (answer, error) {
	id := cradle.DeviceID(r.PathValue("id"))
	return answer{}, s.hub.DeleteDevice(r.Context(), r.hub, id, iothub.UnquoteETag(r.Header.Get("If-Match")))
}

func (s *Server) list(r *request) (answer, error) {
	q := r.URL.Query()
	top := maxPage
	if t := q.Get("top"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 || n > maxPage {
			return answer{}, cradle.Errorf(cradle.Invalid, "top must be 1 to %d", maxPage)
		}
		top = n
	}
	after := q.Get("continuation")
	if after == "" {
		after = r.Header.Get(iothub.ContinuationHeader)
	}
	ds, err := s.hub.ListDevices(r.Context(), r.hub, cradle.DeviceID(after), top)
	if err != nil {
		return answer{}, err
	}
	a := answer{body: ds}
	if len(ds) == top { // there may be more; an empty page ends it too
		a.header = map[string]string{iothub.ContinuationHeader: string(ds[len(ds)-1].DeviceID)}
	}
	return a, nil
}

func (s *Server) modules(r *request) (answer, error) {
	if _, err := s.hub.GetDevice(r.Context(), r.hub, cradle.DeviceID(r.PathValue("id"))); err != nil {
		return answer{}, err
	}
	return answer{body: []struct{}{}}, nil
}

// fail is the one mapping of kinds to REST answers, in Azure's shape.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, code := http.StatusInternalServerError, iothub.CodeServerError
	switch cradle.KindOf(err) {
	case cradle.Invalid:
		status, code = http.StatusBadRequest, iothub.CodeArgumentInvalid
	case cradle.Unauthorized:
		status, code = http.StatusUnauthorized, iothub.CodeUnauthorized
	case cradle.Forbidden:
		status, code = http.StatusForbidden, iothub.CodeUnauthorized
	case cradle.NotFound:
		status, code = http.StatusNotFound, iothub.CodeNotFound
		if r.PathValue("id") != "" {
			code = iothub.CodeDeviceNotFound
		}
	case cradle.Conflict:
		status, code = http.StatusConflict, iothub.CodeDeviceAlreadyExists
		if hub.Moved(err) {
			status, code = http.StatusPreconditionFailed, iothub.CodePreconditionFailed
		}
	case cradle.TooLarge:
		status, code = http.StatusRequestEntityTooLarge, iothub.CodeTooLarge
	case cradle.Busy:
		status, code = http.StatusServiceUnavailable, iothub.CodeServerBusy
		w.Header().Set("Retry-After", "3")
	}
	detail, hint := cradle.Public(err)
	if hint != "" {
		detail += ": " + hint
	}
	tracking := rand.Text()
	level := s.log.Info
	if status >= 500 {
		level = s.log.Error
	}
	level("hub refused a request", "method", r.Method, "path", r.URL.Path, "status", status, "tracking", tracking, "err", err)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("iothub-errorcode", code)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(iothub.Error{Message: "ErrorCode:" + code + ";" + detail, ExceptionMessage: "Tracking ID:" + tracking})
}

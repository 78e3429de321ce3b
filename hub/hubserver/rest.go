package hubserver

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Limits of REST.
const (
	maxRequest = 64 << 10 // bytes of a request body
	maxBulk    = 4 << 20  // bytes of a body with many entries
	maxPage    = 1000     // entries of a list
)

// ServeHTTP implements http.Handler: the REST side.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := front.CheckPath(r); err != nil {
		s.fail(w, r, err)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) routes() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("GET /devices", s.rest(hub.RegistryRead, s.list))
	m.HandleFunc("GET /devices/{$}", s.rest(hub.RegistryRead, s.list))
	m.HandleFunc("GET /devices/{id}", s.rest(hub.RegistryRead, s.get))
	m.HandleFunc("PUT /devices/{id}", s.rest(hub.RegistryWrite, s.put))
	m.HandleFunc("DELETE /devices/{id}", s.rest(hub.RegistryWrite, s.delete))
	m.HandleFunc("POST /devices", s.restUpTo(maxBulk, hub.RegistryWrite, s.bulk))
	m.HandleFunc("GET /devices/{id}/modules", s.selfOr(hub.RegistryRead, s.listModules))
	m.HandleFunc("GET /devices/{id}/modules/{module}", s.selfOr(hub.RegistryRead, s.getModule))
	m.HandleFunc("PUT /devices/{id}/modules/{module}", s.selfOr(hub.RegistryWrite, s.putModule))
	m.HandleFunc("DELETE /devices/{id}/modules/{module}", s.selfOr(hub.RegistryWrite, s.deleteModule))
	s.queryRoutes(m)
	m.HandleFunc("GET /statistics/devices", s.rest(hub.RegistryRead, s.registryStatistics))
	m.HandleFunc("GET /statistics/service", s.rest(hub.RegistryRead, s.serviceStatistics))
	s.unserved(m)
	m.HandleFunc("GET /events", s.events)
	m.HandleFunc("GET /settings/events", s.rest(hub.ServiceConnect, s.eventSources))
	m.HandleFunc("PUT /settings/events", s.rest(hub.RegistryWrite|hub.ServiceConnect, s.setEventSources))
	s.twinRoutes(m)
	s.methodRoutes(m)
	s.c2dRoutes(m)
	s.deviceRoutes(m)
	s.authorityRoutes(m)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, cradle.Errorf(cradle.NotFound, "%s %.200s is not served here", r.Method, r.URL.Path))
	})
	return m
}

// request is an authorised request.
type request struct {
	*http.Request
	hub hub.Name
	w   http.ResponseWriter // only for its deadlines; answers go by the handler's return
}

// answer is what a handler wants written; a nil body means 204.
type answer struct {
	body   any
	status int // 0 means 200
	header map[string]string
}

// rest authorises and writes the one answer.
func (s *Server) rest(need hub.Rights, fn func(*request) (answer, error)) http.HandlerFunc {
	return s.restUpTo(maxRequest, need, fn)
}

// restUpTo is rest with another bound of the body.
func (s *Server) restUpTo(limit int64, need hub.Rights, fn func(*request) (answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		req, err := s.authorize(r, need)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		req.w = w
		s.answer(req, fn)
	}
}

// answer runs a handler and writes its one answer.
func (s *Server) answer(r *request, fn func(*request) (answer, error)) {
	w := r.w
	a, err := fn(r)
	if err != nil {
		s.fail(w, r.Request, err)
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
		s.fail(w, r.Request, err)
		return
	}
	if a.header["Content-Type"] == "" {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	w.WriteHeader(cmp.Or(a.status, http.StatusOK))
	w.Write(b)
}

// decode reads the request's body as one JSON value; what names it in the error.
func (r *request) decode(what string, v any) error {
	d := json.NewDecoder(r.Body)
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the value")
			if more != nil {
				err = more
			}
		}
	}
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return cradle.Errorf(cradle.TooLarge, "request is larger than %d bytes", big.Limit)
	case err != nil:
		return cradle.Errorf(cradle.Invalid, "%s is not JSON as expected: %v", what, strictjson.Reason(err))
	}
	return nil
}

// ifMatch is the request's entity tag, unquoted; "" when there is none.
func (r *request) ifMatch() string { return iothub.UnquoteETag(r.Header.Get("If-Match")) }

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
	return &request{Request: r, hub: name}, nil
}

// fail is the one mapping of kinds to REST answers, in Azure's shape.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, code := http.StatusInternalServerError, iothub.CodeServerError
	switch cradle.KindOf(err) {
	case cradle.Invalid:
		status, code = http.StatusBadRequest, iothub.CodeArgumentInvalid
	case cradle.Unauthorized, cradle.Forbidden: // as Azure; its SDKs take 403 for "too many devices"
		status, code = http.StatusUnauthorized, iothub.CodeUnauthorized
	case cradle.NotFound:
		status, code = http.StatusNotFound, iothub.CodeNotFound
		switch {
		case hub.NoModule(err):
			code = iothub.CodeModuleNotFound
		case r.PathValue("id") != "":
			code = iothub.CodeDeviceNotFound
		}
	case cradle.Conflict:
		status, code = http.StatusConflict, iothub.CodeDeviceAlreadyExists
		switch {
		case hub.Moved(err):
			status, code = http.StatusPreconditionFailed, iothub.CodePreconditionFailed
		case r.PathValue("module") != "":
			code = iothub.CodeModuleAlreadyExists
		case r.PathValue("name") != "":
			code = iothub.CodeNameTaken
		}
	case cradle.TooLarge:
		status, code = http.StatusRequestEntityTooLarge, iothub.CodeTooLarge
	case cradle.Busy:
		status, code = http.StatusServiceUnavailable, iothub.CodeServerBusy
		w.Header().Set("Retry-After", "3")
	}
	if st, c, ok := special(err); ok {
		status, code = st, c
	}
	detail, hint := cradle.Public(err)
	if hint != "" {
		detail += ": " + hint
	}
	tracking := rand.Text()
	level := s.log.Info
	switch {
	case status == http.StatusInternalServerError:
		level = s.log.Error
	case status > http.StatusInternalServerError: // a store or a device that does not answer
		level = s.log.Warn
	}
	level("hub refused a request", "method", r.Method, "path", r.URL.Path, "status", status, "tracking", tracking, "err", err)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("iothub-errorcode", code)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(iothub.Error{Message: "ErrorCode:" + code + ";" + detail, ExceptionMessage: "Tracking ID:" + tracking})
}

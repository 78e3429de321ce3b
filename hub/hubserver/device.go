package hubserver

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Limits of a device's HTTP requests.
const (
	maxPost     = 512 << 10 // bytes of a body: a batch is base64 in JSON
	maxMessages = 500       // of a batch
)

// batchType is the content type of several messages in one request.
const batchType = "application/vnd.microsoft.iothub.json"

// deviceRoutes are what devices do over HTTPS: telemetry, and messages to them. Twins and methods are MQTT's alone, as in Azure.
func (s *Server) deviceRoutes(m *http.ServeMux) {
	m.HandleFunc("POST /devices/{id}/messages/events", s.byDevice(s.postEvents))
	m.HandleFunc("POST /devices/{id}/modules/{module}/messages/events", s.byDevice(s.postEvents))
	m.HandleFunc("GET /devices/{id}/messages/devicebound", s.byDevice(s.receive))
	m.HandleFunc("DELETE /devices/{id}/messages/devicebound/{lock}", s.byDevice(s.complete))
	m.HandleFunc("POST /devices/{id}/messages/devicebound/{lock}/abandon", s.byDevice(s.abandon))
}

// byDevice lets the device or module of the path in, by its SAS token or its TLS client certificate.
func (s *Server) byDevice(fn func(http.ResponseWriter, *request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxPost)
		req, err := s.loginAs(r, true)
		if err == nil {
			err = fn(w, req)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

// loginAs admits the device of the path or, where the path has one and module says so, the module. The hub is that of
// the host name: a device names no other.
func (s *Server) loginAs(r *http.Request, module bool) (*request, error) {
	name, err := s.hub.Resolve(r.Context(), r.Host, s.def)
	if err != nil {
		return nil, err
	}
	req := &request{Request: r, hub: name}
	id, part := req.path()
	if !module {
		part = ""
	}
	l := &hub.Login{Token: r.Header.Get("Authorization"), Host: r.Host}
	if r.TLS != nil {
		l.Chain = r.TLS.PeerCertificates
	}
	return req, s.hub.Authenticate(r.Context(), name, id, part, l)
}

// byItself reports whether a request is to be judged as the device's own: its token names no policy, or it has none but a
// certificate.
func byItself(r *http.Request) bool {
	token := r.Header.Get("Authorization")
	if token == "" {
		return r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	}
	t, err := sas.Parse(token)
	return err == nil && t.KeyName == ""
}

func (s *Server) postEvents(w http.ResponseWriter, r *request) error {
	ms, err := messages(r.Request)
	if err != nil {
		return err
	}
	id, module := r.path()
	if err := s.hub.Append(r.Context(), r.hub, id, module, ms...); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// messages reads one message, or a batch.
func messages(r *http.Request) ([]hub.Message, error) {
	body, err := readBody(r.Body)
	if err != nil {
		return nil, err
	}
	if t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.EqualFold(strings.TrimSpace(t), batchType) {
		return parseBatch(body)
	}
	bag, err := bagOfHeader(r.Header)
	return []hub.Message{{Properties: bag, Body: body}}, err
}

// parseBatch reads [{"body": base64, "properties": {"iothub-app-…": …}}]; with "base64Encoded": false the body is text.
func parseBatch(b []byte) ([]hub.Message, error) {
	var in []struct {
		Body          string            `json:"body"`
		Base64Encoded *bool             `json:"base64Encoded"`
		Properties    map[string]string `json:"properties"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "batch is not JSON as expected: %v", strictjson.Reason(err))
	}
	if len(in) == 0 || len(in) > maxMessages {
		return nil, cradle.Errorf(cradle.Invalid, "a batch has 1 to %d messages, not %d", maxMessages, len(in))
	}
	out := make([]hub.Message, len(in))
	for i, m := range in {
		out[i].Body = []byte(m.Body)
		if m.Base64Encoded == nil || *m.Base64Encoded {
			var err error
			if out[i].Body, err = base64.StdEncoding.DecodeString(m.Body); err != nil {
				return nil, cradle.Errorf(cradle.Invalid, "body of message %d is not base64", i)
			}
		}
		lower := make(map[string]string, len(m.Properties))
		names := make([]string, 0, len(m.Properties))
		for k, v := range m.Properties {
			names = append(names, k)
			lower[k], lower[strings.ToLower(k)] = v, v
		}
		var err error
		if out[i].Properties, err = bagOf(func(k string) string { return lower[k] }, names); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// receive answers with the oldest message, or 204.
func (s *Server) receive(w http.ResponseWriter, r *request) error {
	id, _ := r.path()
	m, err := s.hub.ReceiveC2D(r.Context(), r.hub, id)
	if err != nil {
		return err
	}
	if m == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	setHeaders(w.Header(), m)
	w.Write(m.Body)
	return nil
}

// complete ends a message: it was taken, or with ?reject it is not wanted; either way it does not come again.
func (s *Server) complete(w http.ResponseWriter, r *request) error {
	id, _ := r.path()
	settle := s.hub.CompleteC2D
	if r.URL.Query().Has("reject") {
		settle = s.hub.RejectC2D
	}
	if err := settle(r.Context(), r.hub, id, lockOf(r.PathValue("lock"))); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) abandon(w http.ResponseWriter, r *request) error {
	id, _ := r.path()
	if err := s.hub.AbandonC2D(r.Context(), r.hub, id, lockOf(r.PathValue("lock"))); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// selfOr is rest for what a device may do for itself too: its module identities (IoT Identity Service needs them to finish
// provisioning).
func (s *Server) selfOr(need hub.Rights, fn func(*request) (answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !byItself(r) {
			s.rest(need, fn)(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		req, err := s.loginAs(r, false)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		req.w = w
		s.answer(req, fn)
	}
}

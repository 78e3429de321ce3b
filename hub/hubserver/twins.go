package hubserver

import (
	"net/http"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// maxTwin bounds the body of a twin: three sections and generous white space and escapes.
const maxTwin = 256 << 10

func (s *Server) twinRoutes(m *http.ServeMux) {
	for _, path := range []string{"/twins/{id}", "/twins/{id}/modules/{module}"} {
		m.HandleFunc("GET "+path, s.rest(hub.ServiceConnect, s.getTwin))
		m.HandleFunc("PATCH "+path, s.restUpTo(maxTwin, hub.ServiceConnect, s.changeTwin(false)))
		m.HandleFunc("PUT "+path, s.restUpTo(maxTwin, hub.ServiceConnect, s.changeTwin(true)))
	}
}

func twinAnswer(t *iothub.Twin) answer {
	return answer{body: t, header: map[string]string{"ETag": iothub.QuoteETag(t.ETag)}}
}

func (s *Server) getTwin(r *request) (answer, error) {
	device, module := r.path()
	t, err := s.hub.Twin(r.Context(), r.hub, device, module)
	if err != nil {
		return answer{}, err
	}
	if module == "" {
		n, err := s.hub.WaitingC2D(r.Context(), r.hub, device)
		if err != nil {
			return answer{}, err
		}
		t.CloudToDeviceMessageCount = iothub.Count(n)
	}
	return twinAnswer(t), nil
}

func (s *Server) changeTwin(replace bool) func(*request) (answer, error) {
	return func(r *request) (answer, error) {
		var p iothub.TwinPatch
		if err := r.decode("twin", &p); err != nil {
			return answer{}, err
		}
		device, module := r.path()
		t, err := s.hub.PatchTwin(r.Context(), r.hub, device, module, &p, r.ifMatch(), replace)
		if err != nil {
			return answer{}, err
		}
		return twinAnswer(t), nil
	}
}

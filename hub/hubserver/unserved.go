package hubserver

import (
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
)

// unserved adds the parts of Azure's service API that this hub does not have: a list of them is empty, as SDKs
// and tools may ask, and everything else is refused by name.
func (s *Server) unserved(m *http.ServeMux) {
	none := s.rest(hub.RegistryRead, func(*request) (answer, error) { return answer{body: []struct{}{}}, nil })
	m.HandleFunc("GET /configurations", none)
	m.HandleFunc("GET /jobs", none)
	for path, what := range map[string]string{
		"/configurations/": "automatic device management (configurations and deployments)",
		"/jobs/":           "jobs",
		"/devices/{id}/applyConfigurationContent": "applying a deployment's content to a device",
		"/digitaltwins/": "Digital Twins (a device's model id is carried in its twin)",
	} {
		m.HandleFunc(path, s.rest(hub.RegistryRead, func(*request) (answer, error) {
			return answer{}, cradle.Errorf(cradle.Invalid, "this hub does not serve %s", what).
				WithHint("use the registry, twins, methods and messages of each device")
		}))
	}
}

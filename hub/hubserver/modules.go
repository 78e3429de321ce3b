package hubserver

import (
	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// path returns the device and the module of the path.
func (r *request) path() (cradle.DeviceID, iothub.ModuleID) {
	return cradle.DeviceID(r.PathValue("id")), iothub.ModuleID(r.PathValue("module"))
}

func (s *Server) listModules(r *request) (answer, error) {
	device, _ := r.path()
	ms, err := s.hub.ListModules(r.Context(), r.hub, device)
	if err != nil {
		return answer{}, err
	}
	return answer{body: ms}, nil
}

func moduleAnswer(m *iothub.Module) answer {
	return answer{body: m, header: map[string]string{"ETag": iothub.QuoteETag(m.ETag)}}
}

func (s *Server) getModule(r *request) (answer, error) {
	device, module := r.path()
	m, err := s.hub.GetModule(r.Context(), r.hub, device, module)
	if err != nil {
		return answer{}, err
	}
	return moduleAnswer(m), nil
}

func (s *Server) putModule(r *request) (answer, error) {
	var m iothub.Module
	if err := r.decode("module", &m); err != nil {
		return answer{}, err
	}
	if device, module := r.path(); m.DeviceID != device || m.ModuleID != module {
		return answer{}, cradle.Errorf(cradle.Invalid, "module %.128q of device %.128q is not that of the path, %.128q of %.128q",
			m.ModuleID, m.DeviceID, module, device)
	}
	out, err := s.hub.PutModule(r.Context(), r.hub, &m, r.ifMatch())
	if err != nil {
		return answer{}, err
	}
	return moduleAnswer(out), nil
}

func (s *Server) deleteModule(r *request) (answer, error) {
	device, module := r.path()
	return answer{}, s.hub.DeleteModule(r.Context(), r.hub, device, module, r.ifMatch())
}

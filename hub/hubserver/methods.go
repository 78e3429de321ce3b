package hubserver

import (
	"net/http"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// maxMethod bounds the body of a method call: its payload, and the rest.
const maxMethod = iothub.MaxMethodPayload + 4<<10

func (s *Server) methodRoutes(m *http.ServeMux) {
	for _, path := range []string{"/twins/{id}", "/twins/{id}/modules/{module}"} {
		m.HandleFunc("POST "+path+"/methods", s.restUpTo(maxMethod, hub.ServiceConnect, s.invoke))
	}
}

func (s *Server) invoke(r *request) (answer, error) {
	var m iothub.Method
	if err := r.decode("method", &m); err != nil {
		return answer{}, err
	}
	if err := m.Check(); err != nil {
		return answer{}, err
	}
	// The call may take longer than the server gives other answers.
	end := time.Now().Add(time.Duration(m.ConnectTimeoutInSeconds+m.ResponseTimeoutInSeconds)*time.Second + writeTime)
	rc := http.NewResponseController(r.w)
	rc.SetReadDeadline(end) // not every writer can; then the server's own holds
	rc.SetWriteDeadline(end)
	device, module := r.path()
	res, err := s.hub.InvokeMethod(r.Context(), r.hub, device, module, &m)
	if err != nil {
		return answer{}, err
	}
	return answer{body: res}, nil
}

// special are refusals that Azure answers differently than their kind says.
func special(err error) (status int, code string, ok bool) {
	switch {
	case hub.Offline(err):
		return http.StatusNotFound, iothub.CodeDeviceNotOnline, true
	case hub.NoAnswer(err):
		return http.StatusGatewayTimeout, iothub.CodeGatewayTimeout, true
	case hub.BadAnswer(err):
		return http.StatusBadGateway, iothub.CodeBadDeviceAnswer, true
	case hub.MailFull(err):
		return http.StatusForbidden, iothub.CodeQueueFull, true
	case hub.LockLost(err):
		return http.StatusPreconditionFailed, iothub.CodeLockLost, true
	}
	return 0, "", false
}

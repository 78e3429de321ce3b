package hubserver

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// The service side of messages to devices. Azure takes them over AMQP, and so do its SDKs; these paths are those of its
// early REST API, with the same headers.
func (s *Server) c2dRoutes(m *http.ServeMux) {
	m.HandleFunc("POST /messages/devicebound", s.restUpTo(iothub.MaxC2D+1, hub.ServiceConnect, s.sendC2D))
	m.HandleFunc("POST /devices/{id}/messages/devicebound", s.restUpTo(iothub.MaxC2D+1, hub.ServiceConnect, s.sendC2D))
	m.HandleFunc("DELETE /devices/{id}/commands", s.rest(hub.ServiceConnect, s.purgeC2D))
}

func (s *Server) sendC2D(r *request) (answer, error) {
	id := cradle.DeviceID(r.PathValue("id"))
	if to := r.Header.Get(iothub.HeaderTo); to != "" || id == "" {
		named, err := iothub.ParseTo(to)
		if err != nil {
			return answer{}, err
		}
		if id != "" && named != id {
			return answer{}, cradle.Errorf(cradle.Invalid, "%s is of device %.128q, the path of %.128q", iothub.HeaderTo, named, id)
		}
		id = named
		r.SetPathValue("id", string(id)) // for fail: it is the device that is not found
	}
	bag, err := bagOfHeader(r.Header)
	if err != nil {
		return answer{}, err
	}
	m := &hub.C2D{Device: id}
	for _, p := range bag {
		switch p.Name {
		case iothub.PropExpiry:
			if m.Expires, err = time.Parse(time.RFC3339, p.Value); err != nil {
				return answer{}, cradle.Errorf(cradle.Invalid, "%s %.40q is not a time as 2026-01-02T15:04:05Z", iothub.HeaderExpiry, p.Value)
			}
		case iothub.PropAck:
			switch p.Value {
			case "none", "positive", "negative", "full":
			default:
				return answer{}, cradle.Errorf(cradle.Invalid, "%s %.40q is none of none, positive, negative, full", iothub.PropAck, p.Value)
			}
			m.Properties = append(m.Properties, p)
		case iothub.PropTo:
		default:
			m.Properties = append(m.Properties, p)
		}
	}
	m.Properties = append(m.Properties, iothub.Property{Name: iothub.PropTo, Value: "/devices/" + string(id) + "/messages/devicebound"})
	if m.Body, err = readBody(r.Body); err != nil {
		return answer{}, err
	}
	return answer{}, s.hub.SendC2D(r.Context(), r.hub, m)
}

// readBody reads a request's body whole; TooLarge.
func readBody(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(r)
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, cradle.Errorf(cradle.TooLarge, "request is larger than %d bytes", big.Limit)
	case err != nil:
		return nil, cradle.Errorf(cradle.Invalid, "reading the request: %v", err)
	}
	return b, nil
}

func (s *Server) purgeC2D(r *request) (answer, error) {
	id, _ := r.path()
	n, err := s.hub.PurgeC2D(r.Context(), r.hub, id)
	if err != nil {
		return answer{}, err
	}
	return answer{body: iothub.Purged{DeviceID: id, TotalMessagesPurged: n}}, nil
}

package hubserver

import (
	"net/http"
	"strconv"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/query"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func (s *Server) queryRoutes(m *http.ServeMux) {
	m.HandleFunc("POST /devices/query", s.restUpTo(query.MaxLen+4<<10, hub.ServiceConnect, s.query))
}

func (s *Server) query(r *request) (answer, error) {
	var in struct {
		Query string `json:"query"`
	}
	if err := r.decode("query", &in); err != nil {
		return answer{}, err
	}
	limit := 0
	if v := r.Header.Get(iothub.MaxItemsHeader); v != "" {
		var err error
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 {
			return answer{}, cradle.Errorf(cradle.Invalid, "%s %.20q is not a number from 1", iothub.MaxItemsHeader, v)
		}
	}
	p, err := s.hub.Query(r.Context(), r.hub, in.Query, min(limit, hub.MaxPage), r.Header.Get(iothub.ContinuationHeader))
	if err != nil {
		return answer{}, err
	}
	a := answer{body: p.Lines, header: map[string]string{iothub.ItemTypeHeader: "raw"}}
	if p.Twins {
		a.header[iothub.ItemTypeHeader] = "Twin"
	}
	if p.Continuation != "" { // SDKs take even an empty one for "there is more"
		a.header[iothub.ContinuationHeader] = p.Continuation
	}
	return a, nil
}

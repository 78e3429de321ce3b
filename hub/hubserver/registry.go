package hubserver

import (
	"net/http"
	"strconv"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func (s *Server) get(r *request) (answer, error) {
	d, err := s.hub.GetDevice(r.Context(), r.hub, cradle.DeviceID(r.PathValue("id")))
	if err != nil {
		return answer{}, err
	}
	n, err := s.hub.WaitingC2D(r.Context(), r.hub, d.DeviceID)
	if err != nil {
		return answer{}, err
	}
	d.CloudToDeviceMessageCount = iothub.Count(n)
	return deviceAnswer(d), nil
}

func deviceAnswer(d *iothub.Device) answer {
	return answer{body: d, header: map[string]string{"ETag": iothub.QuoteETag(d.ETag)}}
}

func (s *Server) put(r *request) (answer, error) {
	var d iothub.Device
	if err := r.decode("device", &d); err != nil {
		return answer{}, err
	}
	if id := cradle.DeviceID(r.PathValue("id")); d.DeviceID != id {
		return answer{}, cradle.Errorf(cradle.Invalid, "deviceId %.128q is not that of the path, %.128q", d.DeviceID, id)
	}
	out, err := s.hub.PutDevice(r.Context(), r.hub, &d, r.ifMatch())
	if err != nil {
		return answer{}, err
	}
	return deviceAnswer(out), nil
}

func (s *Server) delete(r *request) (answer, error) {
	return answer{}, s.hub.DeleteDevice(r.Context(), r.hub, cradle.DeviceID(r.PathValue("id")), r.ifMatch())
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

// bulk writes up to hub.MaxBulk entries. As with Azure the answer is 400 when one of them was refused, and
// lists what was; the others are done.
func (s *Server) bulk(r *request) (answer, error) {
	var in []iothub.BulkDevice
	if err := r.decode("list of devices", &in); err != nil {
		return answer{}, err
	}
	out, err := s.hub.Bulk(r.Context(), r.hub, in)
	if err != nil {
		return answer{}, err
	}
	a := answer{body: out}
	if !out.IsSuccessful {
		a.status = http.StatusBadRequest
		for _, e := range out.Errors {
			s.log.Info("hub refused an entry", "hub", r.hub, "device", e.DeviceID, "module", e.ModuleID, "code", e.ErrorCode, "err", e.ErrorStatus)
		}
	}
	return a, nil
}

func (s *Server) registryStatistics(r *request) (answer, error) {
	st, err := s.hub.Statistics(r.Context(), r.hub)
	return answer{body: st}, err
}

func (s *Server) serviceStatistics(r *request) (answer, error) {
	return answer{body: iothub.ServiceStatistics{ConnectedDeviceCount: s.hub.ConnectedTo(r.hub)}}, nil
}

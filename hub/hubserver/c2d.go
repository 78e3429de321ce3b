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
	for _, path := range []string{"/messages/serviceBound/feedback", "/messages/servicebound/feedback"} { // both are in use
		m.HandleFunc("GET "+path, s.rest(hub.ServiceConnect, s.receiveFeedback))
		m.HandleFunc("DELETE "+path+"/{lock}", s.rest(hub.ServiceConnect, s.completeFeedback))
		m.HandleFunc("POST "+path+"/{lock}/abandon", s.rest(hub.ServiceConnect, s.abandonFeedback))
	}
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

// receiveFeedback answers with the records of one batch, whose lock is the ETag, or 204.
func (s *Server) receiveFeedback(r *request) (answer, error) {
	fs, lock, err := s.hub.ReceiveFeedback(r.Context(), r.hub)
	if err != nil || len(fs) == 0 {
		return answer{}, err
	}
	records, newest := make([]iothub.FeedbackRecord, len(fs)), time.Time{}
	for i, f := range fs {
		records[i] = iothub.FeedbackRecord{OriginalMessageID: f.Message, Description: f.Outcome.String(), StatusCode: f.Outcome.String(), DeviceID: f.Device,
			DeviceGenerationID: f.Generation, EnqueuedTimeUTC: f.At.UTC()}
		if f.At.After(newest) {
			newest = f.At
		}
	}
	return answer{body: records, header: map[string]string{"ETag": `"` + lock + `"`, "Content-Type": iothub.FeedbackType,
		iothub.HeaderEnqueued: newest.UTC().Format(time.RFC3339Nano), "iothub-userid": string(r.hub)}}, nil
}

func (s *Server) completeFeedback(r *request) (answer, error) {
	return answer{}, s.hub.CompleteFeedback(r.Context(), r.hub, r.PathValue("lock"))
}

func (s *Server) abandonFeedback(r *request) (answer, error) {
	return answer{}, s.hub.AbandonFeedback(r.Context(), r.hub, r.PathValue("lock"))
}

package hubserver

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func (s *Server) authorityRoutes(m *http.ServeMux) {
	m.HandleFunc("GET /certificates", s.rest(hub.RegistryRead, s.authorities))
	m.HandleFunc("PUT /certificates/{name}", s.rest(hub.RegistryWrite, s.addAuthority))
	m.HandleFunc("DELETE /certificates/{name}", s.rest(hub.RegistryWrite, s.removeAuthority))
}

func (s *Server) authority(ca *hub.TrustedCA) iothub.Authority {
	sum := sha256.Sum256(ca.DER)
	a := iothub.Authority{Name: ca.Name, SHA256: hex.EncodeToString(sum[:]), Added: ca.Added.UTC()}
	if c, err := x509.ParseCertificate(ca.DER); err == nil { // it was one when it was stored
		a.Subject, a.NotAfter, a.Expired = c.Subject.String(), c.NotAfter.UTC(), s.hub.Expired(c)
	}
	return a
}

func (s *Server) authorities(r *request) (answer, error) {
	cas, err := s.hub.CAs(r.Context(), r.hub)
	if err != nil {
		return answer{}, err
	}
	out := make([]iothub.Authority, len(cas))
	for i := range cas {
		out[i] = s.authority(&cas[i])
	}
	return answer{body: out}, nil
}

func (s *Server) addAuthority(r *request) (answer, error) {
	var in iothub.NewAuthority
	if err := r.decode("CA", &in); err != nil {
		return answer{}, err
	}
	ca, err := s.hub.AddCA(r.Context(), r.hub, r.PathValue("name"), in.Certificate)
	if err != nil {
		return answer{}, err
	}
	return answer{body: s.authority(ca)}, nil
}

func (s *Server) removeAuthority(r *request) (answer, error) {
	return answer{}, s.hub.RemoveCA(r.Context(), r.hub, r.PathValue("name"))
}

package estserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// caCerts is RFC 7030 §4.1. It needs no authentication (§4.1.2).
func (s *Server) caCerts(r *http.Request, e Endpoint) (answer, error) {
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return answer{}, err
	}
	var der [][]byte
	err := s.call(r, func(ctx context.Context) error {
		certs, err := s.c.Provider.CACerts(ctx, e)
		for _, c := range certs {
			der = append(der, c.Raw)
		}
		return err
	})
	if err != nil {
		return answer{}, err
	}
	return certsAnswer(r, est.TypePKCS7, der...)
}

// enroll is RFC 7030 §4.2.
func (s *Server) enroll(w http.ResponseWriter, r *http.Request, e Endpoint, op Operation) (answer, error) {
	if err := allow(r, http.MethodPost); err != nil {
		return answer{}, err
	}
	if err := mediaType(r, est.TypePKCS10); err != nil {
		return answer{}, err
	}
	p := peer(r)
	if p == nil { // before the body is read, but after what a wrong client can mend
		return answer{}, cradle.Errorf(cradle.Unauthorized, "no TLS client certificate was presented").
			WithHint("%s is authenticated by a TLS client certificate of this account", op)
	}
	body, err := readBody(w, r)
	if err != nil {
		return answer{}, err
	}
	csr, err := est.DecodeBody(body, est.PEMRequest...)
	if err != nil {
		return answer{}, err
	}
	if err := checkPOPLinking(csr, r.TLS); err != nil {
		return answer{}, err
	}
	var issued Issued
	err = s.call(r, func(ctx context.Context) error {
		issued, err = s.c.Provider.Enroll(ctx, Enrolment{Endpoint: e, Operation: op, Peer: p, CSR: csr})
		return err
	})
	if err != nil {
		return answer{}, err
	}
	tellReplaced(w, issued.Replaced)
	return certsAnswer(r, est.TypeCertsOnly, issued.Certificate)
}

// tellReplaced lists the wishes that were replaced, as far as they fit into a short header: strongSwan takes a
// head of 1024 bytes.
func tellReplaced(w http.ResponseWriter, names []string) {
	if len(names) == 0 {
		return
	}
	list := ""
	for i, n := range names {
		if len(list)+len(n) > 256 {
			list += "and more"
			break
		}
		if list += n; i < len(names)-1 {
			list += ", "
		}
	}
	w.Header()["Cradle-Replaced"] = []string{list}
}

// nonce is the resource of draft-ietf-lamps-attestation-freshness: GET for a bare nonce, POST with a request.
func (s *Server) nonce(w http.ResponseWriter, r *http.Request, e Endpoint) (answer, error) {
	if err := allow(r, http.MethodGet, http.MethodPost); err != nil {
		return answer{}, err
	}
	var req est.NonceRequest
	if r.Method == http.MethodPost {
		if err := mediaType(r, est.TypeNonce); err != nil {
			return answer{}, err
		}
		body, err := readBody(w, r)
		if err != nil {
			return answer{}, err
		}
		if req, err = est.ParseNonceRequest(body); err != nil {
			return answer{}, &refusal{error: err, noContent: true}
		}
	}
	var resp est.NonceResponse
	err := s.call(r, func(ctx context.Context) (err error) {
		resp, err = s.c.Provider.Nonce(ctx, e, peer(r), req.Type, req.ReqInfo)
		return err
	})
	if err != nil {
		return answer{}, &refusal{error: err, noContent: true}
	}
	body, err := json.Marshal(resp)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, contentType: est.TypeNonce, body: body}, nil
}

// certsAnswer breaks the base64 into lines when the client names itself. Who sends no User-Agent is strongSwan (before
// 5.9.11 it refuses white space) or Bouncy Castle; libest, which needs lines, sends one.
func certsAnswer(r *http.Request, contentType string, der ...[]byte) (answer, error) {
	msg, err := est.EncodeCerts(der...)
	if err != nil {
		return answer{}, errors.New("internal error: provider's certificates: " + err.Error())
	}
	return answer{status: http.StatusOK, contentType: contentType, base64: true, body: est.EncodeBody(msg, r.UserAgent() != "")}, nil
}

// peer is the client's certificate, unverified; nil without.
func peer(r *http.Request) *x509.Certificate {
	if len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

func allow(r *http.Request, methods ...string) error {
	list := ""
	for _, m := range methods {
		if r.Method == m {
			return nil
		}
		if list != "" {
			list += ", "
		}
		list += m
	}
	return &refusal{
		error:  cradle.Errorf(cradle.Invalid, "method %.20q is not for this resource", r.Method).WithHint("use %s", list),
		status: http.StatusMethodNotAllowed,
		allow:  list,
	}
}

// mediaType compares type and subtype without regard to case and ignores parameters (RFC 9110 §8.3.1).
func mediaType(r *http.Request, want string) error {
	got := r.Header.Get("Content-Type")
	if mt, _, err := mime.ParseMediaType(got); (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)) && mt == want {
		return nil
	}
	return &refusal{
		error:  cradle.Errorf(cradle.Invalid, "content type %.100q is not %s", got, want).WithHint("send the header Content-Type: %s", want),
		status: http.StatusUnsupportedMediaType,
	}
}

// readBody reads at most est.MaxBody; net/http closes the connection of a client that sends more.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := cradle.Errorf(cradle.TooLarge, "the body has more than %d bytes", est.MaxBody)
	if r.ContentLength > est.MaxBody {
		w.Header()["Connection"] = []string{"close"} // the rest of the body is not read
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, est.MaxBody))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case err != nil:
		return nil, &cradle.Error{Kind: cradle.Invalid, Detail: "the body is not complete", Hint: "send it again", Err: err}
	}
	return body, nil
}

// privateCause is what the log may know and the client not.
func privateCause(err error) string {
	var e *cradle.Error
	if !errors.As(err, &e) || e.Kind == cradle.Internal {
		return err.Error()
	}
	if e.Err != nil {
		return e.Err.Error()
	}
	return ""
}

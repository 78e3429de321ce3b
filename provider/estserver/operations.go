package estserver

import (
	"context"
	"errors"
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

// csrAttributes is RFC 7030 §4.5 with the message of RFC 9908. It needs no authentication.
func (s *Server) csrAttributes(r *http.Request, e Endpoint, c Client) (answer, error) {
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return answer{}, err
	}
	var want est.CSRAttributes
	err := s.call(r, func(ctx context.Context) (err error) {
		want, err = s.c.Provider.CSRAttributes(ctx, e, c)
		return err
	})
	if err != nil {
		return answer{}, err
	}
	if e.Bound && !wants(want, est.OIDChallengePassword) { // RFC 7030 §3.5
		want.OIDs = append(want.OIDs[:len(want.OIDs):len(want.OIDs)], est.OIDChallengePassword)
	}
	if want.Empty() {
		return answer{status: http.StatusNoContent}, nil // §4.5.2
	}
	der, err := want.Encode()
	if err != nil {
		return answer{}, errors.New("internal error: provider's csrattrs: " + err.Error())
	}
	return answer{status: http.StatusOK, contentType: est.TypeCSRAttrs, base64: true, body: est.EncodeBody(der, wrapped(r))}, nil
}

// enroll is RFC 7030 §4.2.
func (s *Server) enroll(w http.ResponseWriter, r *http.Request, e Endpoint, c Client, op Operation) (answer, error) {
	csr, err := s.readCSR(w, r, e, c, string(op))
	if err != nil {
		return answer{}, err
	}
	var issued Issued
	err = s.call(r, func(ctx context.Context) (err error) {
		issued, err = s.c.Provider.Enroll(ctx, Enrolment{Endpoint: e, Operation: op, Client: c, CSR: csr})
		return err
	})
	if err != nil {
		return answer{}, err
	}
	tellReplaced(w, issued.Replaced)
	return certsAnswer(r, est.TypeCertsOnly, issued.Certificate)
}

// readCSR does what the operations that take a CSR begin with: method, media type, authentication, body, and the
// link to the connection.
func (s *Server) readCSR(w http.ResponseWriter, r *http.Request, e Endpoint, c Client, op string) ([]byte, error) {
	if err := allow(r, http.MethodPost); err != nil {
		return nil, err
	}
	if err := mediaType(r, est.TypePKCS10); err != nil {
		return nil, err
	}
	if err := authenticated(e, c, op); err != nil { // before the body is read, but after what a wrong client can mend
		return nil, err
	}
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	csr, err := est.DecodeBody(body, est.PEMRequest...)
	if err != nil {
		return nil, err
	}
	return csr, checkPOPLinking(csr, r.TLS, e.Bound)
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

// ErrUnwilling is what Provider.Nonce wraps when it gives no nonce of the kind asked for, though the request is well
// formed; the answer is 503 then.
var ErrUnwilling = errors.New("no such nonce is given here")

// nonce is the resource of draft-ietf-lamps-attestation-freshness: GET for a bare nonce, POST with a request.
func (s *Server) nonce(w http.ResponseWriter, r *http.Request, e Endpoint, c Client) (answer, error) {
	if err := allow(r, http.MethodGet, http.MethodPost); err != nil {
		return answer{}, err
	}
	var q est.NonceRequest
	if r.Method == http.MethodPost {
		if err := mediaType(r, est.TypeNonce); err != nil {
			return answer{}, err
		}
		body, err := readBody(w, r)
		if err != nil {
			return answer{}, err
		}
		if q, err = est.ParseNonceRequest(body); err != nil {
			return answer{}, &refusal{error: err, noContent: true}
		}
	}
	var resp est.NonceResponse
	err := s.call(r, func(ctx context.Context) (err error) {
		resp, err = s.c.Provider.Nonce(ctx, e, c, q)
		return err
	})
	switch kind := cradle.KindOf(err); {
	case err == nil:
	case errors.Is(err, ErrUnwilling):
		return answer{}, &refusal{error: err, status: http.StatusServiceUnavailable}
	case kind == cradle.Invalid:
		return answer{}, &refusal{error: err, noContent: true}
	case kind == cradle.Internal:
		return answer{}, &refusal{error: err, status: http.StatusServiceUnavailable, retry: true}
	default:
		return answer{}, err
	}
	return answer{status: http.StatusOK, contentType: est.TypeNonce, body: resp.Encode()}, nil
}

// fullCMC is RFC 7030 §4.3, which is optional.
func (s *Server) fullCMC(r *http.Request) (answer, error) {
	if err := allow(r, http.MethodPost); err != nil {
		return answer{}, err
	}
	return answer{}, &refusal{
		error:  cradle.Errorf(cradle.Invalid, "full CMC (RFC 5272) is not implemented").WithHint("use simpleenroll, simplereenroll or serverkeygen"),
		status: http.StatusNotImplemented,
	}
}

// certsAnswer is a certs-only message.
func certsAnswer(r *http.Request, contentType string, der ...[]byte) (answer, error) {
	msg, err := est.EncodeCerts(der...)
	if err != nil {
		return answer{}, errors.New("internal error: provider's certificates: " + err.Error())
	}
	return answer{status: http.StatusOK, contentType: contentType, base64: true, body: est.EncodeBody(msg, wrapped(r))}, nil
}

// wrapped: base64 is broken into lines when the client names itself. Who sends no User-Agent is strongSwan (before
// 5.9.11 it refuses white space) or Bouncy Castle; libest, which needs lines, sends one.
func wrapped(r *http.Request) bool { return r.UserAgent() != "" }

package estserver

import (
	"context"
	"net/http"

	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/protocol/est"
)

// tpmEnroll is GlobalSign's extension. The client need not bring anything but its request: the provider
// judges the TPM's own certificate, and only that TPM can read the answer.
func (s *Server) tpmEnroll(w http.ResponseWriter, r *http.Request, e Endpoint, c Client) (answer, error) {
	if err := allow(r, http.MethodPost); err != nil {
		return answer{}, err
	}
	if err := mediaType(r, est.TypeMultipart); err != nil {
		return answer{}, err
	}
	body, err := readBody(w, r)
	if err != nil {
		return answer{}, err
	}
	q, err := est.ParseTPMEnrollRequest(r.Header.Get("Content-Type"), body)
	if err != nil {
		return answer{}, err
	}
	if err := checkPOPLinking(q.CSR, r.TLS, e.Bound); err != nil {
		return answer{}, err
	}
	var issued TPMIssued
	err = s.call(r, func(ctx context.Context) (err error) {
		issued, err = s.c.Provider.TPMEnroll(ctx, e, c, q)
		return err
	})
	if err != nil {
		return answer{}, err
	}
	sealed, err := cms.EncryptData(issued.Certificate, issued.Secret)
	if err != nil {
		return answer{}, err
	}
	tellReplaced(w, issued.Replaced)
	a := answer{status: http.StatusOK}
	a.contentType, a.body = est.TPMEnrollResponse{CredentialBlob: issued.CredentialBlob, EncryptedSecret: issued.EncryptedSecret, Certificate: sealed}.Encode()
	return a, nil
}

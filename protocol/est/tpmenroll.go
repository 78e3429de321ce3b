package est

import "github.com/cradle-iot/cradle"

// OpTPMEnroll is GlobalSign's extension of EST (github.com/globalsign/est v1.0.6, in no RFC): the client sends its
// EK certificate with the CSR, and gets the certificate encrypted under a secret that only the TPM of that
// EK can recover, if it also holds the key of the CSR.
const OpTPMEnroll = "tpmenroll"

const (
	tpmBoundary = "estTPMEnrollBoundary"
	typeOctets  = "application/octet-stream"
	// typeEnveloped is what that client wants to read on the certificate, though it is EncryptedData.
	typeEnveloped = "application/pkcs7-mime; smime-type=enveloped-data"
)

// TPMEnrollRequest is the message to tpmenroll.
type TPMEnrollRequest struct {
	CSR      []byte   // signed by the key to be certified
	EKChain  [][]byte // certificates in DER, the EK's first
	EKPublic []byte   // TPMT_PUBLIC
	AKPublic []byte   // TPMT_PUBLIC of the key to be certified
}

// Encode returns the body and its content type.
func (q TPMEnrollRequest) Encode() (contentType string, body []byte, err error) {
	chain, err := EncodeCerts(q.EKChain...)
	if err != nil {
		return "", nil, err
	}
	contentType, body = EncodeParts(tpmBoundary, true, Part{TypePKCS10, q.CSR}, Part{TypeCertsOnly, chain}, Part{typeOctets, q.EKPublic}, Part{typeOctets, q.AKPublic})
	return contentType, body, nil
}

// ParseTPMEnrollRequest reads the four parts in their order. Certificates are split, not parsed: EK certificates
// are often unusual.
func ParseTPMEnrollRequest(contentType string, body []byte) (TPMEnrollRequest, error) {
	parts, err := DecodeParts(contentType, body, 4)
	if err != nil {
		return TPMEnrollRequest{}, err
	}
	for i, ok := range []bool{parts[0].is(TypePKCS10), parts[1].is(TypePKCS7, "certs-only", ""), parts[2].is(typeOctets), parts[3].is(typeOctets)} {
		if !ok {
			return TPMEnrollRequest{}, cradle.Errorf(cradle.Invalid, "tpmenroll request: part %d has content type %.100q", i+1, parts[i].ContentType).
				WithHint("the parts are: the CSR, the EK certificate with its chain, the EK's and the AK's TPMT_PUBLIC")
		}
	}
	chain, err := splitCerts(parts[1].Body)
	if err != nil {
		return TPMEnrollRequest{}, err
	}
	return TPMEnrollRequest{CSR: parts[0].Body, EKChain: chain, EKPublic: parts[2].Body, AKPublic: parts[3].Body}, nil
}

// TPMEnrollResponse is the answer of tpmenroll.
type TPMEnrollResponse struct {
	CredentialBlob  []byte // content of TPM2B_ID_OBJECT
	EncryptedSecret []byte // content of TPM2B_ENCRYPTED_SECRET
	Certificate     []byte // CMS EncryptedData of the certificate under the secret
}

// Encode returns the body and its content type.
func (a TPMEnrollResponse) Encode() (contentType string, body []byte) {
	return EncodeParts(tpmBoundary, true, Part{typeOctets, a.CredentialBlob}, Part{typeOctets, a.EncryptedSecret}, Part{typeEnveloped, a.Certificate})
}

// ParseTPMEnrollResponse reads the three parts in their order.
func ParseTPMEnrollResponse(contentType string, body []byte) (TPMEnrollResponse, error) {
	parts, err := DecodeParts(contentType, body, 3)
	if err != nil {
		return TPMEnrollResponse{}, err
	}
	if !parts[0].is(typeOctets) || !parts[1].is(typeOctets) || !parts[2].is(TypePKCS7, "enveloped-data", "encrypted-data", "") {
		return TPMEnrollResponse{}, cradle.Errorf(cradle.Invalid, "tpmenroll answer: parts of unexpected content types")
	}
	return TPMEnrollResponse{parts[0].Body, parts[1].Body, parts[2].Body}, nil
}

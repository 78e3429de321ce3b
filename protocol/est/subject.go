package est

import (
	"bytes"
	"encoding/asn1"

	"github.com/cradle-iot/cradle"
)

// oidChangeSubjectName is id-cmc-changeSubjectName (RFC 6402 §2.8).
var oidChangeSubjectName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36}

var changeSubjectNameDER = rawOf(oidChangeSubjectName).FullBytes

// ChangeSubjectName is what the attribute of that name in a CSR asks for: other names than those of the certificate
// that authenticates the request (RFC 7030 §4.2.1, §4.2.2). At least one is set.
type ChangeSubjectName struct {
	Subject    []byte // DER of a Name; nil for none
	SubjectAlt []byte // DER of GeneralNames; nil for none
}

// ParseChangeSubjectName reads the attribute from a PKCS#10 request; nil when there is none.
func ParseChangeSubjectName(csr []byte) (*ChangeSubjectName, error) {
	if !bytes.Contains(csr, changeSubjectNameDER) {
		return nil, nil // spares nearly everybody the parsing
	}
	attributes, err := csrAttributes(csr)
	if err != nil {
		return nil, err
	}
	bad := cradle.Errorf(cradle.Invalid, "the CSR's ChangeSubjectName is not of the form that RFC 6402 §2.8 gives it")
	var out *ChangeSubjectName
	for _, a := range attributes {
		if !a.Type.Equal(oidChangeSubjectName) {
			continue
		}
		if out != nil || len(a.Values) != 1 {
			return nil, bad
		}
		// SEQUENCE { subject Name OPTIONAL, subjectAlt GeneralNames OPTIONAL }: both are sequences without a tag of
		// their own; a Name is made of SETs, GeneralNames of context tags.
		var parts []asn1.RawValue
		if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, &parts); err != nil || len(rest) > 0 || len(parts) == 0 || len(parts) > 2 {
			return nil, bad
		}
		out = new(ChangeSubjectName)
		for _, p := range parts {
			var inner []asn1.RawValue
			if rest, err := asn1.Unmarshal(p.FullBytes, &inner); err != nil || len(rest) > 0 {
				return nil, bad
			}
			alt := len(inner) > 0 && inner[0].Class == asn1.ClassContextSpecific
			switch {
			case alt && out.SubjectAlt == nil:
				out.SubjectAlt = p.FullBytes
			case !alt && out.Subject == nil && out.SubjectAlt == nil:
				out.Subject = p.FullBytes
			default:
				return nil, bad
			}
		}
	}
	return out, nil
}

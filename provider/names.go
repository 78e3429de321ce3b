package provider

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/ca"
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// sameNames: in a re-enrolment the CSR's subject and subjectAltName must be those of the certificate (RFC 7030
// §4.2.2), by their text and in whatever encoding. A CSR without a subjectAltName asks for no other one.
func sameNames(csr *evidence.CSR, old *x509.Certificate) error {
	if !ca.SameName(csr.Request.RawSubject, old.RawSubject) {
		return cradle.Errorf(cradle.Invalid, "the CSR's subject %q is not that of the certificate to be renewed, %q", csr.Request.Subject, old.Subject).
			WithHint("copy the subject; other names are asked for by ChangeSubjectName where the profile allows it")
	}
	if san := extension(csr.Request.Extensions, oidSAN); san != nil && !ca.SameAltNames(san, extension(old.Extensions, oidSAN)) {
		return cradle.Errorf(cradle.Invalid, "the CSR's subjectAltName is not that of the certificate to be renewed").
			WithHint("copy it or leave it out; other names are asked for by ChangeSubjectName where the profile allows it")
	}
	return nil
}

func extension(list []pkix.Extension, id asn1.ObjectIdentifier) []byte {
	for _, e := range list {
		if e.Id.Equal(id) {
			return e.Value
		}
	}
	return nil
}

// changeNames puts the names that ChangeSubjectName asks for (RFC 6402 §2.8, RFC 7030 §4.2.1 and §4.2.2) in place of
// those in the CSR, where the profile lets clients ask. What is granted of them the profile's wishes say, as of any
// CSR; and a device that is known keeps its own name, which is its identity everywhere.
func changeNames(rules *ca.Profile, r Request, pt *party, csr *evidence.CSR, w *ca.Wishes) error {
	change, err := est.ParseChangeSubjectName(r.CSR)
	if err != nil || change == nil {
		return err
	}
	if !rules.ChangeSubjectName {
		return cradle.Errorf(cradle.Forbidden, "profile %s lets nobody change names", r.Profile).
			WithHint("leave ChangeSubjectName out, or have the profile's change_subject_name set")
	}
	if change.Subject != nil {
		var rdn pkix.RDNSequence
		var name pkix.Name
		if rest, err := asn1.Unmarshal(change.Subject, &rdn); err != nil || len(rest) > 0 {
			return cradle.Errorf(cradle.Invalid, "the subject in ChangeSubjectName is no Name")
		}
		name.FillFromRDNSequence(&rdn)
		wish, err := wishedName(name)
		if err != nil {
			return err
		}
		if pt.Device.ID != "" && wish != pt.Device.ID {
			return cradle.Errorf(cradle.Forbidden, "device %s keeps its name; ChangeSubjectName asks for %q", pt.Device.ID, name.CommonName).
				WithHint("another name is another device: enrol it anew")
		}
		w.Subject = change.Subject
		csr.Request.Subject, csr.Request.RawSubject = name, change.Subject
	}
	if change.SubjectAlt != nil {
		w.Extensions = slices.DeleteFunc(slices.Clone(w.Extensions), func(e pkix.Extension) bool { return e.Id.Equal(oidSAN) })
		w.Extensions = append(w.Extensions, pkix.Extension{Id: oidSAN, Value: change.SubjectAlt})
	}
	return nil
}

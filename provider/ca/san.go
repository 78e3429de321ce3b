package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
)

var (
	oidSAN                = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidHardwareModuleName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // RFC 4108 §5
	oidPermanentID        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3} // RFC 4043
	oidHWTypeTPM20        = asn1.ObjectIdentifier{2, 23, 133, 1, 2}
	oidEKPermIDSHA256     = asn1.ObjectIdentifier{2, 23, 133, 12, 1}
)

// hardwareSAN names the TPM in the subjectAltName as the TCG's "TPM 2.0 Keys for Device Identity and
// Attestation" §8 has it: hardwareModuleName and permanentIdentifier, here both by the digest of the
// endorsement key, which the device cannot choose.
func hardwareSAN(ekDigest []byte) (pkix.Extension, error) {
	type otherName struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var names []asn1.RawValue
	add := func(id asn1.ObjectIdentifier, v any) error {
		inner, err := asn1.Marshal(v)
		if err != nil {
			return err
		}
		o, err := asn1.MarshalWithParams(otherName{id, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}}, "tag:0")
		if err != nil {
			return err
		}
		names = append(names, asn1.RawValue{FullBytes: o})
		return nil
	}
	if err := add(oidHardwareModuleName, struct {
		HWType      asn1.ObjectIdentifier
		HWSerialNum []byte
	}{oidHWTypeTPM20, ekDigest}); err != nil {
		return pkix.Extension{}, err
	}
	if err := add(oidPermanentID, struct {
		Value    string `asn1:"utf8"`
		Assigner asn1.ObjectIdentifier
	}{hex.EncodeToString(ekDigest), oidEKPermIDSHA256}); err != nil {
		return pkix.Extension{}, err
	}
	der, err := asn1.Marshal(names)
	return pkix.Extension{Id: oidSAN, Value: der}, err
}

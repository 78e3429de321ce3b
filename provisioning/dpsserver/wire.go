package dpsserver

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// termsOf reads the terms of an enrolment or a group.
func termsOf(b dps.Terms) (provisioning.Terms, error) {
	t := provisioning.Terms{Allocation: b.AllocationPolicy, Hubs: b.IotHubs, Weights: b.HubWeights, Region: b.Region, RegionHint: b.RegionHint,
		Reprovision: provisioning.Reprovision{UpdateHub: true, MigrateData: true}, CredentialPolicy: b.CredentialPolicyName}
	switch strings.ToLower(b.ProvisioningStatus) {
	case "", "enabled":
		t.Enabled = true
	case "disabled":
	default:
		return t, cradle.Errorf(cradle.Invalid, "provisioningStatus %.40q: use enabled or disabled", b.ProvisioningStatus)
	}
	if b.IotHubHostName != "" && len(t.Hubs) == 0 {
		t.Hubs = []string{b.IotHubHostName}
	}
	if p := b.ReprovisionPolicy; p != nil {
		t.Reprovision = provisioning.Reprovision{UpdateHub: p.UpdateHubAssignment, MigrateData: p.MigrateDeviceData}
	}
	if given(b.InitialTwin) {
		t.InitialTwin = b.InitialTwin
	}
	t.IoTEdge = b.Capabilities != nil && b.Capabilities.IotEdge
	if d := b.CustomAllocationDefinition; d != nil && *d != (dps.CustomAllocation{}) {
		t.Custom = &provisioning.CustomAllocation{WebhookURL: d.WebhookURL, APIVersion: d.APIVersion, CEL: d.CEL, Fallback: d.Fallback}
	}
	return t, nil
}

// given reports whether an optional field holds something.
func given(raw json.RawMessage) bool {
	switch strings.Join(strings.Fields(string(raw)), "") {
	case "", "null", "{}":
		return false
	}
	return true
}

// wireTerms is the inverse of termsOf.
func (h *Handler) wireTerms(t provisioning.Terms, etag string, created, updated time.Time) dps.Terms {
	b := dps.Terms{
		ETag: quote(etag), ProvisioningStatus: "disabled", AllocationPolicy: t.Allocation,
		ReprovisionPolicy: &dps.ReprovisionRule{UpdateHubAssignment: t.Reprovision.UpdateHub, MigrateDeviceData: t.Reprovision.MigrateData},
		Capabilities:      &dps.Capabilities{IotEdge: t.IoTEdge}, InitialTwin: t.InitialTwin, CredentialPolicyName: t.CredentialPolicy,
		CreatedDateTimeUTC: dps.Time{Time: created}, LastUpdatedDateTimeUTC: dps.Time{Time: updated},
		HubWeights: t.Weights, Region: t.Region, RegionHint: t.RegionHint,
	}
	if t.Enabled {
		b.ProvisioningStatus = "enabled"
	}
	if c := t.Custom; c != nil {
		b.CustomAllocationDefinition = &dps.CustomAllocation{WebhookURL: c.WebhookURL, APIVersion: c.APIVersion, CEL: c.CEL, Fallback: c.Fallback}
	}
	for _, name := range t.Hubs {
		b.IotHubs = append(b.IotHubs, h.svc.HubHost(name))
	}
	return b
}

// attestationOf reads how devices prove themselves. present is what is enrolled now: a client that read it got no
// certificates, only their description, and means with it that they shall stay.
func attestationOf(b dps.Attestation, present *provisioning.Attestation) (provisioning.Attestation, error) {
	var a provisioning.Attestation
	kind := strings.ToLower(b.Type)
	switch {
	case kind == "x509" && b.X509 != nil && given(b.X509.CAReferences):
		return a, cradle.Errorf(cradle.Invalid, "attestation by caReferences is not supported by this service (give signingCertificates)")
	case kind == "x509":
		return x509Of(b.X509, present)
	case kind == "symmetrickey":
		a.Kind = provisioning.SymmetricKey
		if k := b.SymmetricKey; k != nil {
			var err error
			if a.PrimaryKey, err = dps.Base64("primaryKey", k.PrimaryKey); err != nil {
				return a, err
			}
			if a.SecondaryKey, err = dps.Base64("secondaryKey", k.SecondaryKey); err != nil {
				return a, err
			}
		}
		return a, nil
	case kind == "tpm" && b.TPMUnits != nil:
		a.Kind = provisioning.TPMUnits
		a.Units = provisioning.Units{Account: cradle.AccountID(b.TPMUnits.Account), Order: cradle.OrderID(b.TPMUnits.Order)}
		for _, l := range b.TPMUnits.Lots {
			a.Units.Lots = append(a.Units.Lots, cradle.LotID(l))
		}
		return a, nil
	case kind == "tpm":
		a.Kind = provisioning.TPM
		var err error
		if b.TPM != nil {
			a.TPM, err = tpmKeys(b.TPM)
		}
		return a, err
	}
	return a, cradle.Errorf(cradle.Invalid, "attestation type %s is not supported by this service", strconv.Quote(b.Type)).WithHint("use x509, symmetricKey or tpm")
}

func tpmKeys(b *dps.TPM) (provisioning.TPMKeys, error) {
	var k provisioning.TPMKeys
	var err error
	if k.Endorsement, err = dps.Base64("tpm.endorsementKey", b.EndorsementKey); err != nil {
		return k, err
	}
	k.StorageRoot, err = dps.Base64("tpm.storageRootKey", b.StorageRootKey)
	return k, err
}

func x509Of(b *dps.X509Attestation, present *provisioning.Attestation) (provisioning.Attestation, error) {
	a := provisioning.Attestation{Kind: provisioning.X509CA}
	if b == nil {
		b = new(dps.X509Attestation)
	}
	certs, name := b.SigningCertificates, "signingCertificates"
	if b.ClientCertificates != nil {
		if certs != nil {
			return a, cradle.Errorf(cradle.Invalid, "attestation.x509 has signingCertificates and clientCertificates")
		}
		a.Kind, certs, name = provisioning.X509Client, b.ClientCertificates, "clientCertificates"
	}
	if certs == nil || certs.Primary == nil {
		return a, cradle.Errorf(cradle.Invalid, "attestation.x509.%s.primary is missing", name)
	}
	var err error
	if a.Primary, err = slot(certs.Primary, present); err != nil {
		return a, err
	}
	if certs.Secondary != nil && (certs.Secondary.Certificate != "" || certs.Secondary.Info != nil) {
		if a.Secondary, err = slot(certs.Secondary, present); err != nil {
			return a, err
		}
	}
	return a, nil
}

// slot reads one certificate, or finds it again by its description.
func slot(c *dps.X509Certificate, present *provisioning.Attestation) ([]byte, error) {
	if c.Certificate == "" && c.Info != nil && present != nil {
		for _, der := range [][]byte{present.Primary, present.Secondary} {
			if len(der) > 0 && strings.EqualFold(fmt.Sprintf("%X", sha256.Sum256(der)), c.Info.SHA256Thumbprint) {
				return der, nil
			}
		}
		return nil, cradle.Errorf(cradle.Invalid, "certificate %.64s is not the one enrolled", c.Info.SHA256Thumbprint).WithHint("send the certificate itself")
	}
	cert, err := c.Parse()
	if err != nil {
		return nil, err
	}
	return cert.Raw, nil
}

// wireAttestation shows certificates by their description, and keys only where they are asked for.
func wireAttestation(a provisioning.Attestation, keys bool) (dps.Attestation, error) {
	b := dps.Attestation{Type: a.Kind.Type()}
	switch a.Kind {
	case provisioning.X509CA, provisioning.X509Client:
		certs := new(dps.X509Certificates)
		for _, slot := range []struct {
			der []byte
			to  **dps.X509Certificate
		}{{a.Primary, &certs.Primary}, {a.Secondary, &certs.Secondary}} {
			if len(slot.der) == 0 {
				continue
			}
			c, err := x509.ParseCertificate(slot.der)
			if err != nil {
				return b, err
			}
			*slot.to = &dps.X509Certificate{Info: dps.Info(c)}
			if keys {
				(*slot.to).Certificate = base64.StdEncoding.EncodeToString(slot.der)
			}
		}
		b.X509 = &dps.X509Attestation{SigningCertificates: certs}
		if a.Kind == provisioning.X509Client {
			b.X509 = &dps.X509Attestation{ClientCertificates: certs}
		}
	case provisioning.SymmetricKey:
		if keys {
			b.SymmetricKey = &dps.SymmetricKey{PrimaryKey: base64.StdEncoding.EncodeToString(a.PrimaryKey), SecondaryKey: base64.StdEncoding.EncodeToString(a.SecondaryKey)}
		}
	case provisioning.TPM:
		b.TPM = &dps.TPM{EndorsementKey: base64.StdEncoding.EncodeToString(a.TPM.Endorsement), StorageRootKey: base64.StdEncoding.EncodeToString(a.TPM.StorageRoot)}
	case provisioning.TPMUnits:
		b.TPMUnits = &dps.TPMUnits{Account: string(a.Units.Account), Order: string(a.Units.Order)}
		for _, l := range a.Units.Lots {
			b.TPMUnits.Lots = append(b.TPMUnits.Lots, string(l))
		}
	}
	return b, nil
}

// ifMatch is the bare etag of the If-Match header; clients send it with or without quotes.
func ifMatch(q *request) string { return bare(q.Header.Get("If-Match")) }

func bare(etag string) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(etag), "W/"), `"`)
}

func quote(etag string) string { return `"` + etag + `"` }

// named takes an entry's name from the path; a body that names another one is refused.
func named(body *string, what string, q *request) error {
	if *body != "" && !strings.EqualFold(*body, q.seg[1]) {
		return cradle.Errorf(cradle.Invalid, "body is for %s %.140q, the path for %.140q", what, *body, q.seg[1])
	}
	*body = q.seg[1]
	return nil
}

// mechanism answers attestationmechanism, the one request that shows keys.
func (h *Handler) mechanism(a provisioning.Attestation, what, id string) (*reply, error) {
	b, err := wireAttestation(a, true)
	if err != nil {
		return nil, err
	}
	h.log.Info("attestation mechanism read", what, id, "attestation", a.Kind)
	return &reply{status: http.StatusOK, body: b}, nil
}

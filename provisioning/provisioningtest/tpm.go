package provisioningtest

import (
	"encoding/base64"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle/internal/tpmio"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
)

// TPM does what Microsoft's TPM client does, on the TPM at a path.
type TPM struct {
	EK, SRK []byte // TPM2B_PUBLIC

	t        testing.TB
	tpm      transport.TPM
	ek, srk  *tpm2.CreatePrimaryResponse
	identity *tpm2.LoadResponse // the key that was activated last
}

// OpenTPM makes the keys of the given templates; nil: RSA-2048, as Microsoft's clients have.
func OpenTPM(t testing.TB, path string, ek, srk *tpm2.TPMTPublic) *TPM {
	t.Helper()
	conn, err := tpmio.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if ek == nil {
		ek = &tpm2.RSAEKTemplate
	}
	if srk == nil {
		srk = &tpm2.RSASRKTemplate
	}
	x := &TPM{t: t, tpm: conn.With(t.Context())}
	x.ek, x.srk = x.primary(tpm2.TPMRHEndorsement, ek), x.primary(tpm2.TPMRHOwner, srk)
	x.EK, x.SRK = tpm2.Marshal(x.ek.OutPublic), tpm2.Marshal(x.srk.OutPublic)
	return x
}

func (x *TPM) primary(h tpm2.TPMHandle, template *tpm2.TPMTPublic) *tpm2.CreatePrimaryResponse {
	x.t.Helper()
	r, err := (tpm2.CreatePrimary{PrimaryHandle: h, InPublic: tpm2.New2B(*template)}).Execute(x.tpm)
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

// Activate takes in the key of a blob: TPM2_ActivateCredential, TPM2_Import, TPM2_Load.
func (x *TPM) Activate(blob []byte) error {
	x.t.Helper()
	parts, err := tpmblob.Parts(blob)
	if err != nil {
		return err
	}
	id, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](parts[0])
	if err != nil {
		return err
	}
	secret, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](parts[1])
	if err != nil {
		return err
	}
	// The endorsement key is used by its policy: PolicySecret(endorsement hierarchy).
	wrap, err := (tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: x.srk.ObjectHandle, Name: x.srk.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle: tpm2.AuthHandle{Handle: x.ek.ObjectHandle, Name: x.ek.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16,
			tpm2.PolicyCallback(func(tpm transport.TPM, handle tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: handle, NonceTPM: nonce}.Execute(tpm)
				return err
			}))},
		CredentialBlob: *id, Secret: *secret,
	}).Execute(x.tpm)
	if err != nil {
		return err
	}
	duplicate, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](parts[2])
	if err != nil {
		return err
	}
	outer, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](parts[3])
	if err != nil {
		return err
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](parts[4])
	if err != nil {
		return err
	}
	srk := tpm2.AuthHandle{Handle: x.srk.ObjectHandle, Name: x.srk.Name, Auth: tpm2.PasswordAuth(nil)}
	imported, err := (tpm2.Import{ParentHandle: srk, EncryptionKey: tpm2.TPM2BData{Buffer: wrap.CertInfo.Buffer}, ObjectPublic: *public, Duplicate: *duplicate,
		InSymSeed: *outer, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgAES,
			KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)}}).Execute(x.tpm)
	if err != nil {
		return err
	}
	if x.identity != nil { // a TPM has room for three objects
		(tpm2.FlushContext{FlushHandle: x.identity.ObjectHandle}).Execute(x.tpm)
		x.identity = nil
	}
	loaded, err := (tpm2.Load{ParentHandle: srk, InPrivate: imported.OutPrivate, InPublic: *public}).Execute(x.tpm)
	if err != nil {
		return err
	}
	x.identity = loaded
	return nil
}

// HMAC signs with the activated key.
func (x *TPM) HMAC(b []byte) []byte {
	x.t.Helper()
	r, err := (tpm2.Hmac{Handle: tpm2.AuthHandle{Handle: x.identity.ObjectHandle, Name: x.identity.Name, Auth: tpm2.PasswordAuth(nil)},
		Buffer: tpm2.TPM2BMaxBuffer{Buffer: b}, HashAlg: tpm2.TPMAlgNull}).Execute(x.tpm)
	if err != nil {
		x.t.Fatal(err)
	}
	return r.OutHMAC.Buffer
}

// Token signs a SAS token as the SDK does.
func (x *TPM) Token(resource, keyName string, expiry time.Time) string {
	x.t.Helper()
	sr, se := url.QueryEscape(resource), strconv.FormatInt(expiry.Unix(), 10)
	token := "SharedAccessSignature sr=" + sr + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(x.HMAC([]byte(sr+"\n"+se)))) + "&se=" + se
	if keyName != "" {
		token += "&skn=" + keyName
	}
	return token
}

package tpmkey_test

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
)

func setLockoutAuth(t *testing.T, soft *swtpm.TPM) {
	t.Helper()
	raw(t, soft, func(tpm transport.TPM) {
		_, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHLockout, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
	})
}

func powerCut(t *testing.T, soft *swtpm.TPM) {
	t.Helper()
	soft.Kill()
	if err := soft.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Power cuts after every use of the protected keys do not lock them, even where nobody can reset the lockout.
func TestPowerCuts(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	setLockoutAuth(t, soft)
	for range 12 {
		tpm := open(t, soft)
		iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
		idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
		signs(t, iak.Signer())
		signs(t, idevid)
		if _, err := tpm.Certify(t.Context(), idevid, []byte("extra")); err != nil {
			t.Fatal(err)
		}
		powerCut(t, soft)
		tpm.Close()
	}
}

// A TPM that something else locked is unlocked if its owner guards nothing by the lockout.
func TestLockout(t *testing.T) {
	for name, guarded := range map[string]bool{"free": false, "guarded": true} {
		t.Run(name, func(t *testing.T) {
			soft, _ := newTPM(t, tpmmaker.Options{})
			tpm := open(t, soft)
			idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
			signs(t, idevid)
			tpm.Close()
			if guarded {
				setLockoutAuth(t, soft)
			}
			// Another program uses a protected key and loses power, until the TPM locks.
			var last error
			for range 50 {
				raw(t, soft, func(tpm transport.TPM) {
					handle := tpm2.TPMHandle(tpmkey.HandleIDevID)
					public, err := (tpm2.ReadPublic{ObjectHandle: handle}).Execute(tpm)
					if err != nil {
						t.Fatal(err)
					}
					_, last = (tpm2.Sign{
						KeyHandle:  tpm2.AuthHandle{Handle: handle, Name: public.Name, Auth: tpm2.PasswordAuth(nil)},
						Digest:     tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
						InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
						Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
					}).Execute(tpm)
				})
				if last != nil {
					break
				}
				powerCut(t, soft)
			}
			if !errors.Is(last, tpm2.TPMRCLockout) {
				t.Fatalf("the TPM did not lock: %v", last)
			}
			tpm = open(t, soft)
			idevid = must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
			if !guarded {
				signs(t, idevid)
				return
			}
			_, err := tpm.Certify(t.Context(), idevid, nil)
			wantKind(t, "a TPM locked by its owner's rules", err, cradle.Busy)
		})
	}
}

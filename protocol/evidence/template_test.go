package evidence_test

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/protocol/evidence"
)

// The published digests of TCG Keys v1.10 §7.3.6 follow from the branches.
func TestPolicyDigests(t *testing.T) {
	for name, c := range map[string]struct {
		branches []tpm2.TPM2BDigest
		want     []byte
	}{
		"IAK":    {evidence.IAKBranches, evidence.IAKPolicy},
		"IDevID": {evidence.IDevIDBranches, evidence.IDevIDPolicy},
	} {
		calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
		if err != nil {
			t.Fatal(err)
		}
		if err := (tpm2.PolicyOr{PHashList: tpm2.TPMLDigest{Digests: c.branches}}).Update(calc); err != nil {
			t.Fatal(err)
		}
		if got := calc.Hash().Digest; !bytes.Equal(got, c.want) {
			t.Errorf("%s policy: got %x, want %x", name, got, c.want)
		}
	}
}

// PolicySecret and PolicyCommandCode give the branches for Certify and ActivateCredential.
func TestPolicyBranches(t *testing.T) {
	for i, cc := range []tpm2.TPMCC{0, tpm2.TPMCCCertify, tpm2.TPMCCActivateCredential} {
		calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
		if err != nil {
			t.Fatal(err)
		}
		secret := tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement}}
		if err := secret.Update(calc); err != nil {
			t.Fatal(err)
		}
		if cc != 0 {
			if err := (tpm2.PolicyCommandCode{Code: cc}).Update(calc); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := calc.Hash().Digest, evidence.IAKBranches[i].Buffer; !bytes.Equal(got, want) {
			t.Errorf("branch %d: got %x, want %x", i, got, want)
		}
	}
}

package tpmkey

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The TCG's templates leave IAK and IDevID key under the TPM's protection against dictionary attacks, though
// there is no authorisation value to guess. So each power cut after a use of them counts as a failed
// attempt (TPM 2.0 Part 1 §19.8.6), and a few cuts in a row lock the keys for minutes or hours. Two
// things keep that from a device that loses power often.

// settle tells the TPM, after a use of a protected key, that power may go (TPM2_Shutdown): then
// nothing is counted. The TPM goes on working. It costs a write to its NV memory, so it is not done after
// uses of other keys. That it fails is no reason for the operation to fail.
func settle(tpm transport.TPM) {
	(tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(tpm)
}

// protected reports whether uses of the key count.
func (k *Key) protected() bool { return !k.public.ObjectAttributes.NoDA }

// Bit of TPM_PT_PERMANENT (Part 2 §8.6): lockoutAuth is not empty.
const lockoutAuthSet = 1 << 2

// unlock resets the count of failed attempts where the lockout authorisation is empty, that is, where the TPM's
// owner guards nothing by it. Trying that with a wrong value would lock it for a day.
func unlock(tpm transport.TPM) error {
	got, err := (tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1,
	}).Execute(tpm)
	if err != nil {
		return err
	}
	props, err := got.CapabilityData.Data.TPMProperties()
	if err != nil {
		return err
	}
	if p := props.TPMProperty; len(p) == 0 || p[0].Property != tpm2.TPMPTPermanent || p[0].Value&lockoutAuthSet != 0 {
		return errors.New("the lockout is somebody's")
	}
	// TPM2_DictionaryAttackLockReset with an empty password, which go-tpm has not.
	command := []byte{
		0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x39, // header
		0x40, 0, 0, 0x0a, // TPM_RH_LOCKOUT
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // empty password
	}
	response, err := tpm.Send(command)
	if err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(response[6:]); rc != 0 {
		return fmt.Errorf("resetting the lockout: %w", tpm2.TPMRC(rc))
	}
	return nil
}

package tpmmaker

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/tpmio"
)

// EKType names the kind of endorsement key.
type EKType string

// The kinds: templates L-1, L-2 and H-3 of the TCG EK Credential Profile.
const (
	RSA2048 EKType = "rsa2048"
	P256    EKType = "p256"
	P384    EKType = "p384"
)

// Options describe the TPM to make. The zero value is a good TPM with a P-256 endorsement key.
type Options struct {
	EKType EKType
	Fault  Fault
}

// Unit is a made TPM, as the maker's records have it.
type Unit struct {
	EKCert []byte // DER; empty with NoCertificate
	EKPub  crypto.PublicKey
}

type ekKind struct {
	template tpm2.TPMTPublic
	nvIndex  tpm2.TPMHandle
	persist  tpm2.TPMHandle // 0: not kept in the TPM, quick to make again
}

// nvChain is the first NV index of the EK certificate's chain (EK Credential Profile v2.5 §2.2.1.5).
const nvChain tpm2.TPMHandle = 0x01C00100

var kinds = map[EKType]ekKind{
	RSA2048: {tpm2.RSAEKTemplate, 0x01C00002, 0x81010001},
	P256:    {tpm2.ECCEKTemplate, 0x01C0000A, 0},
	P384:    {templateH3(), 0x01C00016, 0},
}

// Manufacture makes the running, empty software TPM behind socket into a delivered one: endorsement key, EK
// certificate and chain in NV, defined by the platform hierarchy so that TPM2_Clear leaves them. A TPM
// that has an EK certificate of this kind is refused with Conflict.
func (m *Maker) Manufacture(ctx context.Context, socket string, o Options) (*Unit, error) {
	if o.EKType == "" {
		o.EKType = P256
	}
	kind, ok := kinds[o.EKType]
	if !ok {
		return nil, cradle.Errorf(cradle.Invalid, "unknown EK type %q: use rsa2048, p256 or p384", o.EKType)
	}
	conn, err := tpmio.Open(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	tpm := conn.With(ctx)

	pub, err := createEK(tpm, kind)
	if err != nil {
		return nil, fmt.Errorf("making the endorsement key: %w", err)
	}
	unit := &Unit{EKPub: pub}
	if o.Fault == NoCertificate {
		return unit, nil
	}
	if unit.EKCert, err = m.issueEK(pub, o.Fault); err != nil {
		return nil, fmt.Errorf("issuing the EK certificate: %w", err)
	}
	// The chain first: a TPM with a certificate is a finished one.
	if o.Fault != NoChain {
		if err := storeNV(tpm, nvChain, m.intermediate.Raw); err != nil {
			return nil, fmt.Errorf("storing the EK certificate's chain: %w", err)
		}
	}
	if err := storeNV(tpm, kind.nvIndex, unit.EKCert); err != nil {
		return nil, fmt.Errorf("storing the EK certificate: %w", err)
	}
	return unit, nil
}

func createEK(tpm transport.TPM, kind ekKind) (crypto.PublicKey, error) {
	key, err := (tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHEndorsement,
		InPublic:      tpm2.New2B(kind.template),
	}).Execute(tpm)
	if err != nil {
		return nil, err
	}
	defer (tpm2.FlushContext{FlushHandle: key.ObjectHandle}).Execute(tpm)
	if kind.persist != 0 {
		_, err := (tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
			PersistentHandle: kind.persist,
		}).Execute(tpm)
		if err != nil {
			return nil, err
		}
	}
	public, err := key.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	return tpm2.Pub(*public)
}

// storeNV defines an index by platform authorisation, writes it, and locks it for ever.
func storeNV(tpm transport.TPM, index tpm2.TPMHandle, data []byte) error {
	public := tpm2.TPMSNVPublic{
		NVIndex: index,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			PPWrite: true, WriteDefine: true, PPRead: true, OwnerRead: true, AuthRead: true,
			NoDA: true, PlatformCreate: true,
		},
		DataSize: uint16(len(data)),
	}
	_, err := (tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHPlatform,
		PublicInfo: tpm2.New2B(public),
	}).Execute(tpm)
	if err != nil {
		if errors.Is(err, tpm2.TPMRCNVDefined) {
			return cradle.Errorf(cradle.Conflict, "the TPM holds something at NV index 0x%08x already", uint32(index)).
				WithHint("make a TPM only once, from an empty folder")
		}
		return err
	}
	const chunk = 1024 // the largest that libtpms takes
	for off := 0; off < len(data); off += chunk {
		name, err := tpm2.NVName(&public)
		if err != nil {
			return err
		}
		_, err = (tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHPlatform,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: *name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[off:min(off+chunk, len(data))]},
			Offset:     uint16(off),
		}).Execute(tpm)
		if err != nil {
			return err
		}
		public.Attributes.Written = true // part of the index's name from now on
	}
	name, err := tpm2.NVName(&public)
	if err != nil {
		return err
	}
	_, err = (tpm2.NVWriteLock{
		AuthHandle: tpm2.TPMRHPlatform,
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: *name},
	}).Execute(tpm)
	return err
}

// Produce starts a software TPM in each of dirs and manufactures it, several at a time. progress,
// which may be nil, is called once per TPM, one call at a time. On an error the TPMs already
// started are stopped.
func (m *Maker) Produce(ctx context.Context, dirs []string, o Options, run swtpm.Options, progress func()) ([]*swtpm.TPM, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tpms := make([]*swtpm.TPM, len(dirs))
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // serialises progress
		next = make(chan int)
	)
	for range min(len(dirs), 4*runtime.NumCPU()) {
		wg.Go(func() {
			for i := range next {
				t, err := swtpm.Start(ctx, dirs[i], run)
				if err == nil {
					tpms[i] = t
					_, err = m.Manufacture(ctx, t.Socket(), o)
				}
				if err != nil {
					cancel(fmt.Errorf("TPM %s: %w", filepath.Base(dirs[i]), err))
					return
				}
				if progress != nil {
					mu.Lock()
					progress()
					mu.Unlock()
				}
			}
		})
	}
feed:
	for i := range dirs {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	if ctx.Err() == nil {
		return tpms, nil
	}
	for _, t := range tpms {
		if t != nil {
			t.Stop()
		}
	}
	return nil, context.Cause(ctx)
}

func templateH3() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA384,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		// PolicyB of the profile, SHA-384.
		AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte{
			0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc,
			0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4,
			0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09,
			0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
		}},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			CurveID: tpm2.TPMECCNistP384,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
)

// NV indices of the device's certificates, in the range 0x01C90000 to 0x01C900FF that the TCG reserves for them. The
// IDevID's is the one that other implementations use; the IAK's is ours, plus 8 as for HandleIAK.
// Readers should not rely on the number: FindCertificate matches by key.
const (
	NVIDevID uint32 = 0x01C90000
	NVIAK    uint32 = 0x01C90008

	nvDevIDLast uint32 = 0x01C900FF
)

// WriteCertificate stores a certificate in NV. The index is defined by the platform hierarchy where it is
// open, so that TPM2_Clear leaves it, else by the owner's. An index that holds the same certificate is left
// alone; one that holds another certificate for the same key, or a write of ours that was
// interrupted, is written anew; anything else is refused with Conflict.
func (t *TPM) WriteCertificate(ctx context.Context, index uint32, der []byte) error {
	key, err := certificateKey(der)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "the certificate for NV index 0x%08x: %w", index, err)
	}
	return t.do(ctx, "storing a certificate in NV", func(tpm transport.TPM) error {
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		present, err := readNV(tpm, index, s)
		switch {
		case isAbsent(err):
			return t.createNV(tpm, s, index, der)
		case err != nil && !errors.Is(err, errUnwritten):
			return err
		case bytes.Equal(present, der):
			return nil
		}
		if err := mayReplace(index, present, key); err != nil {
			return err
		}
		if err := removeNV(tpm, s, index); err != nil {
			return err
		}
		return t.createNV(tpm, s, index, der)
	})
}

// mayReplace: what createNV leaves when it is interrupted does not begin with a certificate.
func mayReplace(index uint32, present []byte, key crypto.PublicKey) error {
	old, _, err := cutCertificate(present)
	if err != nil {
		if len(present) == 0 || present[0] == unwritten[0] {
			return nil
		}
	} else if held, err := certificateKey(old); err == nil {
		if k, ok := held.(interface{ Equal(crypto.PublicKey) bool }); ok && k.Equal(key) {
			return nil
		}
	}
	return cradle.Errorf(cradle.Conflict, "NV index 0x%08x holds something else", index).
		WithHint("look at it with tpm2_nvread 0x%08x; if it may go, remove it with tpm2_nvundefine 0x%08x", index, index)
}

// ReadCertificate returns the certificate at an NV index, NotFound when there is none.
func (t *TPM) ReadCertificate(ctx context.Context, index uint32) (der []byte, err error) {
	err = t.do(ctx, "reading a certificate from NV", func(tpm transport.TPM) error {
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		content, err := readNV(tpm, index, s)
		if isAbsent(err) || errors.Is(err, errUnwritten) {
			return cradle.Errorf(cradle.NotFound, "NV index 0x%08x holds no certificate", index)
		}
		if err != nil {
			return err
		}
		der, _, err = cutCertificate(content)
		if err != nil {
			return cradle.Errorf(cradle.NotFound, "NV index 0x%08x holds no certificate: %w", index, err)
		}
		return nil
	})
	return der, err
}

// FindCertificate looks through the NV indices for device certificates and returns the first
// one for key, NotFound when there is none.
func (t *TPM) FindCertificate(ctx context.Context, key crypto.PublicKey) (index uint32, der []byte, err error) {
	err = t.do(ctx, "looking for a certificate in NV", func(tpm transport.TPM) error {
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		found, err := (tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: NVIDevID, PropertyCount: 254,
		}).Execute(tpm)
		if err != nil {
			return err
		}
		handles, err := found.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range handles.Handle {
			if uint32(h) > nvDevIDLast {
				break
			}
			content, err := readNV(tpm, uint32(h), s)
			if err != nil {
				continue // not readable for us, so not ours
			}
			cert, _, err := cutCertificate(content)
			if err != nil {
				continue
			}
			held, err := certificateKey(cert)
			if k, ok := held.(interface{ Equal(crypto.PublicKey) bool }); err == nil && ok && k.Equal(key) {
				index, der = uint32(h), cert
				return nil
			}
		}
		return cradle.Errorf(cradle.NotFound, "the TPM holds no certificate for this key")
	})
	return index, der, err
}

var (
	errUnwritten = errors.New("the NV index was never written")
	unwritten    = []byte{0xff} // what NV memory holds before it is written
)

// readNV reads a whole index, in session s if it is not nil. The error is errUnwritten for one without content and
// isAbsent for one that is not defined.
func readNV(tpm transport.TPM, index uint32, s *session) ([]byte, error) {
	public, name, err := nvPublic(tpm, index)
	if err != nil {
		return nil, err
	}
	if !public.Attributes.Written {
		return nil, errUnwritten
	}
	handle := tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: name}
	auth := tpm2.AuthHandle{Handle: handle.Handle, Name: name}
	switch {
	case public.Attributes.AuthRead:
	case public.Attributes.OwnerRead:
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
	default:
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Name: tpm2.HandleName(tpm2.TPMRHPlatform)}
	}
	auth.Auth = tpm2.PasswordAuth(nil)
	if s != nil {
		auth.Auth = s.use(sealOut)
	}
	chunk := nvChunk(tpm)
	out := make([]byte, 0, public.DataSize)
	for len(out) < int(public.DataSize) {
		part, err := (tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    handle,
			Size:       uint16(min(chunk, int(public.DataSize)-len(out))),
			Offset:     uint16(len(out)),
		}).Execute(tpm)
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) == 0 {
			return nil, errors.New("the TPM returned no data")
		}
		out = append(out, part.Data.Buffer...)
	}
	return out, nil
}

func nvPublic(tpm transport.TPM, index uint32) (*tpm2.TPMSNVPublic, tpm2.TPM2BName, error) {
	read, err := (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}).Execute(tpm)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	public, err := read.NVPublic.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	return public, read.NVName, nil
}

// nvChunk is how much one NV command carries (TPM_PT_NV_BUFFER_MAX).
func nvChunk(tpm transport.TPM) int {
	const least = 512
	got, err := (tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVBufferMax), PropertyCount: 1,
	}).Execute(tpm)
	if err != nil {
		return least
	}
	props, err := got.CapabilityData.Data.TPMProperties()
	if err != nil || len(props.TPMProperty) == 0 || props.TPMProperty[0].Property != tpm2.TPMPTNVBufferMax {
		return least
	}
	return int(max(64, min(props.TPMProperty[0].Value, 2048)))
}

// createNV defines an index as large as data and writes it, the first chunk last: until then
// it does not begin with a certificate, which tells a later run that this one was interrupted.
func (t *TPM) createNV(tpm transport.TPM, s *session, index uint32, data []byte) error {
	public := tpm2.TPMSNVPublic{
		NVIndex:  tpm2.TPMHandle(index),
		NameAlg:  tpm2.TPMAlgSHA256,
		DataSize: uint16(len(data)),
	}
	var hierarchy tpm2.TPMHandle
	var err error
	for _, hierarchy = range []tpm2.TPMHandle{tpm2.TPMRHPlatform, tpm2.TPMRHOwner} {
		public.Attributes = tpm2.TPMANV{PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true}
		if hierarchy == tpm2.TPMRHPlatform {
			public.Attributes.PPWrite, public.Attributes.PlatformCreate = true, true
		} else {
			public.Attributes.OwnerWrite = true
		}
		_, err = (tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Name: tpm2.HandleName(hierarchy), Auth: s.use(sealIn)},
			PublicInfo: tpm2.New2B(public),
		}).Execute(tpm)
		if !isClosed(err) {
			break
		}
	}
	switch {
	case errors.Is(err, tpm2.TPMRCSize):
		return cradle.Errorf(cradle.TooLarge, "a certificate of %d bytes is more than one NV index of this TPM holds", len(data))
	case err != nil:
		return fmt.Errorf("defining NV index 0x%08x: %w", index, err)
	}
	chunk := nvChunk(tpm)
	for off := (len(data) - 1) / chunk * chunk; off >= 0; off -= chunk {
		name, err := tpm2.NVName(&public)
		if err != nil {
			return err
		}
		_, err = (tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Name: tpm2.HandleName(hierarchy), Auth: s.use(sealIn)},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[off:min(off+chunk, len(data))]},
			Offset:     uint16(off),
		}).Execute(tpm)
		if err != nil {
			return fmt.Errorf("writing NV index 0x%08x: %w", index, err)
		}
		public.Attributes.Written = true // part of the index's name from now on
	}
	return nil
}

func removeNV(tpm transport.TPM, s *session, index uint32) error {
	public, name, err := nvPublic(tpm, index)
	if err != nil {
		return err
	}
	hierarchy := tpm2.TPMRHOwner
	if public.Attributes.PlatformCreate {
		hierarchy = tpm2.TPMRHPlatform
	}
	_, err = (tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Name: tpm2.HandleName(hierarchy), Auth: s.use(sealNone)},
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: name},
	}).Execute(tpm)
	if isClosed(err) {
		return cradle.Errorf(cradle.Forbidden, "NV index 0x%08x was made by the platform, which is closed to us now", index).
			WithHint("remove the index from the firmware's environment, or keep the certificate it holds")
	}
	if err != nil {
		return fmt.Errorf("removing NV index 0x%08x: %w", index, err)
	}
	return nil
}

// isClosed: the hierarchy is switched off, or the firmware gave it an authorisation value.
func isClosed(err error) bool {
	return errors.Is(err, tpm2.TPMRCHierarchy) || errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}

// readChain reads the EK certificate's chain: certificates one after the other, over as many
// indices as the maker needed.
func readChain(tpm transport.TPM) ([][]byte, error) {
	var all []byte
	for i := uint32(0); i < nvChainMax && len(all) < maxChainLength; i++ {
		part, err := readNV(tpm, nvChainFirst+i, nil)
		if isAbsent(err) || errors.Is(err, errUnwritten) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the EK certificate's chain: %w", err)
		}
		all = append(all, part...)
	}
	return cutAll(all), nil
}

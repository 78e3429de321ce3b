package tpmkey

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// Key is a signing key in the TPM, ECDSA P-256 with SHA-256. It implements crypto.Signer; the rest of its
// use is through the TPM it came from, and ends with that one's Close.
type Key struct {
	t        *TPM
	public   tpm2.TPMTPublic
	name     tpm2.TPM2BName
	ecdsa    *ecdsa.PublicKey
	handle   tpm2.TPMHandle     // persistent, or 0
	private  tpm2.TPM2BPrivate  // of a key that is loaded when used
	branches []tpm2.TPM2BDigest // of its policy; nil when it has none
}

// AttestationKey is the IAK: a restricted key, with which the TPM signs only what it made itself
// or has hashed itself.
type AttestationKey struct{ key *Key }

// TPMTPublic returns the key's public area, marshalled.
func (k *Key) TPMTPublic() []byte { return tpm2.Marshal(k.public) }

// Public returns the key's public area, marshalled (TPMT_PUBLIC): the attestation key of a claim.
func (a *AttestationKey) Public() []byte { return a.key.TPMTPublic() }

// Key returns the attestation key as a Key, for Certify. Its Sign refuses digests; see Signer.
func (a *AttestationKey) Key() *Key { return a.key }

// EnsureIAK returns the initial attestation key, a primary of the endorsement hierarchy at HandleIAK, and derives it when it is not
// there: a TPM has the same one all its life. Conflict when the handle holds another key.
func (t *TPM) EnsureIAK(ctx context.Context) (*AttestationKey, error) {
	k, err := t.ensure(ctx, "IAK", HandleIAK)
	if err != nil {
		return nil, err
	}
	return &AttestationKey{k}, nil
}

// EnsureIDevID does the same for the IDevID key at HandleIDevID.
func (t *TPM) EnsureIDevID(ctx context.Context) (*Key, error) {
	return t.ensure(ctx, "IDevID key", HandleIDevID)
}

// EnsureLDevID returns the LDevID key, a primary of the storage hierarchy at HandleLDevID. It is the same
// until TPM2_Clear, which ends it for ever; then a new one is made. Conflict as for EnsureIAK.
func (t *TPM) EnsureLDevID(ctx context.Context) (*Key, error) {
	return t.ensure(ctx, "LDevID key", HandleLDevID)
}

// primaries are the keys at persistent handles.
var primaries = map[uint32]struct {
	hierarchy tpm2.TPMHandle
	template  tpm2.TPMTPublic
	branches  []tpm2.TPM2BDigest
}{
	HandleIAK:    {tpm2.TPMRHEndorsement, evidence.IAKTemplate, evidence.IAKBranches},
	HandleIDevID: {tpm2.TPMRHEndorsement, evidence.IDevIDTemplate, evidence.IDevIDBranches},
	HandleLDevID: {tpm2.TPMRHOwner, evidence.LDevIDTemplate, nil},
}

func (t *TPM) ensure(ctx context.Context, what string, handle uint32) (key *Key, err error) {
	err = t.do(ctx, what, func(tpm transport.TPM) error {
		key, err = t.primary(tpm, handle)
		return err
	})
	return key, err
}

// primary derives the key anew even if the handle is taken, once per connection: only so is it certain
// that what is there is that key, and that it could be derived again.
func (t *TPM) primary(tpm transport.TPM, handle uint32) (*Key, error) {
	if k := t.fixed[handle]; k != nil {
		return k, nil
	}
	s, err := t.secure(tpm)
	if err != nil {
		return nil, err
	}
	kind := primaries[handle]
	made, err := (tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: kind.hierarchy, Name: tpm2.HandleName(kind.hierarchy), Auth: s.use(sealBoth)},
		InPublic:      tpm2.New2B(kind.template),
	}).Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("deriving it: %w", err)
	}
	defer (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm)
	k, err := t.newKey(made.OutPublic, kind.template)
	if err != nil {
		return nil, err
	}
	k.handle, k.branches = tpm2.TPMHandle(handle), kind.branches
	if err := t.keep(tpm, s, made.ObjectHandle, k.name, handle); err != nil {
		return nil, err
	}
	t.fixed[handle] = k
	return k, nil
}

// keep makes a loaded primary persistent at handle, unless it is there already. TPM2_ReadPublic needs no
// session: a wrong answer is found out at the first use, whose HMAC covers the key's name.
func (t *TPM) keep(tpm transport.TPM, s *session, loaded tpm2.TPMHandle, name tpm2.TPM2BName, handle uint32) error {
	there, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}).Execute(tpm)
	switch {
	case err == nil && bytes.Equal(there.Name.Buffer, name.Buffer):
		return nil
	case err == nil:
		return cradle.Errorf(cradle.Conflict, "persistent handle 0x%08x of the TPM holds another key", handle).
			WithHint("find out whose it is (tpm2_readpublic -c 0x%08x); if it may go, free the handle with tpm2_evictcontrol -c 0x%08x", handle, handle)
	case !isAbsent(err):
		return fmt.Errorf("looking at handle 0x%08x: %w", handle, err)
	}
	_, err = (tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner), Auth: s.use(sealNone)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: loaded, Name: name},
		PersistentHandle: tpm2.TPMHandle(handle),
	}).Execute(tpm)
	if err != nil {
		return fmt.Errorf("keeping it at handle 0x%08x: %w", handle, err)
	}
	return nil
}

// newKey reads a public area that must be made from template.
func (t *TPM) newKey(area tpm2.TPM2BPublic, template tpm2.TPMTPublic) (*Key, error) {
	public, err := area.Contents()
	if err != nil {
		return nil, fmt.Errorf("public area of a key: %w", err)
	}
	if !evidence.MatchesTemplate(*public, template) {
		return nil, errors.New("the key is not what its template says")
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("public area of a key: %w", err)
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key is %T", pub)
	}
	if _, err := ec.ECDH(); err != nil { // go-tpm does not check the point
		return nil, fmt.Errorf("public area of a key: %w", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	return &Key{t: t, public: *public, name: *name, ecdsa: ec}, nil
}

// CreateKey makes an operational key under the storage root key, which is put at HandleSRK when nothing is there.
// The blob (TPM2B_PUBLIC, then TPM2B_PRIVATE) is of use to this TPM only, until TPM2_Clear; the TPM does not keep it.
func (t *TPM) CreateKey(ctx context.Context) (blob []byte, err error) {
	err = t.do(ctx, "making a key", func(tpm transport.TPM) error {
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		srk, err := t.srk(tpm, s)
		if err != nil {
			return err
		}
		t.unload(tpm)
		made, err := (tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: s.use(sealBoth)},
			InPublic:     tpm2.New2B(evidence.OperationalTemplate),
		}).Execute(tpm)
		if err != nil {
			return err
		}
		blob = append(tpm2.Marshal(made.OutPublic), tpm2.Marshal(made.OutPrivate)...)
		return nil
	})
	return blob, err
}

// LoadKey returns the key of a blob that CreateKey made, after seeing that the TPM takes it. Invalid for a
// blob that is none, Conflict for one of another TPM or from before a TPM2_Clear.
func (t *TPM) LoadKey(ctx context.Context, blob []byte) (*Key, error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](blob)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "key blob: %w", err)
	}
	rest := blob[min(len(blob), len(tpm2.Marshal(*public))):]
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](rest)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "key blob: %w", err)
	}
	if !bytes.Equal(append(tpm2.Marshal(*public), tpm2.Marshal(*private)...), blob) {
		return nil, cradle.Errorf(cradle.Invalid, "key blob is damaged")
	}
	k, err := t.newKey(*public, evidence.OperationalTemplate)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "key blob: %w", err)
	}
	k.private = *private
	err = t.do(ctx, "loading a key", func(tpm transport.TPM) error {
		s, err := t.secure(tpm)
		if err == nil {
			_, err = t.load(tpm, s, k)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// load returns a handle for k: its own, or that of the one slot we keep for loaded keys.
func (t *TPM) load(tpm transport.TPM, s *session, k *Key) (tpm2.TPMHandle, error) {
	if k.handle != 0 {
		now, err := t.primary(tpm, uint32(k.handle))
		if err == nil && !bytes.Equal(now.name.Buffer, k.name.Buffer) {
			err = cradle.Errorf(cradle.Conflict, "the key is gone: the TPM was cleared since")
		}
		return k.handle, err
	}
	if t.cached != nil && bytes.Equal(t.cached.name.Buffer, k.name.Buffer) {
		return t.cacheAt, nil
	}
	t.unload(tpm)
	srk, err := t.srk(tpm, s)
	if err != nil {
		return 0, err
	}
	loaded, err := (tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: s.use(sealBoth)},
		InPrivate:    k.private,
		InPublic:     tpm2.New2B(k.public),
	}).Execute(tpm)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return 0, cradle.Errorf(cradle.Conflict, "the key belongs to another TPM, or to this one before it was cleared").
			WithHint("make a new key")
	}
	if err != nil {
		return 0, fmt.Errorf("loading the key: %w", err)
	}
	t.cached, t.cacheAt = k, loaded.ObjectHandle
	return t.cacheAt, nil
}

// srk returns the storage root key. Another program may have put its own there, of another type even;
// any will do that never leaves the TPM and has an empty authorisation.
func (t *TPM) srk(tpm transport.TPM, s *session) (tpm2.NamedHandle, error) {
	there, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(HandleSRK)}).Execute(tpm)
	if err == nil {
		public, err := there.OutPublic.Contents()
		if err != nil {
			return tpm2.NamedHandle{}, err
		}
		a := public.ObjectAttributes
		if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.UserWithAuth {
			return tpm2.NamedHandle{}, cradle.Errorf(cradle.Conflict, "persistent handle 0x%08x holds something that is no storage root key", HandleSRK).
				WithHint("look at it with tpm2_readpublic -c 0x%08x", HandleSRK)
		}
		name, err := tpm2.ObjectName(public)
		if err != nil {
			return tpm2.NamedHandle{}, err
		}
		return tpm2.NamedHandle{Handle: tpm2.TPMHandle(HandleSRK), Name: *name}, nil
	}
	if !isAbsent(err) {
		return tpm2.NamedHandle{}, fmt.Errorf("looking at the storage root key: %w", err)
	}
	made, err := (tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner), Auth: s.use(sealBoth)},
		InPublic:      tpm2.New2B(evidence.SRKTemplate),
	}).Execute(tpm)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("making the storage root key: %w", err)
	}
	defer (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm)
	if err := t.keep(tpm, s, made.ObjectHandle, made.Name, HandleSRK); err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(HandleSRK), Name: made.Name}, nil
}

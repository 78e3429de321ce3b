// Package tpmkey keeps a device's keys in its TPM 2.0 and has the TPM attest to them.
//
// Open takes a TPM by path. EnsureIAK, EnsureIDevID and EnsureLDevID give the long-lived keys at their persistent
// handles, making them when they are not there; CreateKey and LoadKey give operational keys, whose
// encrypted private part the caller stores. Certify and Activate make the two halves of the evidence
// in package evidence, whose templates the keys follow. Certificates are kept in NV.
//
// Every secret and every answer that matters crosses the bus in a session whose key is agreed with
// the endorsement key, authenticated by it, and whose parameters are encrypted (TPM 2.0 Part 1
// §19, §21). The endorsement key is taken from the EK certificate in NV, never from what the TPM says its
// key is; whether that certificate is genuine is for the verifier, who sees the same one.
//
// The hierarchies' authorisation values must be empty, as they are when a TPM leaves its maker.
// A TPM serves one owner at a time and has three slots for keys; this package uses few, and a
// TPM may be shared by goroutines. A persistent handle or NV index that holds something else is
// never overwritten.
package tpmkey

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/tpmio"
)

// Persistent handles. The SRK's is of the TCG Provisioning Guidance (§7.8), the IDevID key's the one that
// implementations of the TCG's "Keys for Device Identity and Attestation" share. For the IAK no
// number was found published; ours follows the reserved policy indices there, where the attestation key's
// is the signing key's plus 8.
const (
	HandleSRK    uint32 = 0x81000001
	HandleLDevID uint32 = 0x81000002
	HandleIDevID uint32 = 0x81020000
	HandleIAK    uint32 = 0x81020008
)

// busyAfter is how long Open waits for a TPM's first answer. A software TPM leaves a second client
// waiting without a word, so that silence is the only sign of another owner.
const busyAfter = 10 * time.Second

// TPM is an open TPM. Its methods may be called by several goroutines; each waits for its turn.
// When the connection ends, because the context of a call ended in the middle of a command or because a
// software TPM was restarted, the call fails and the next one connects afresh.
type TPM struct {
	path string
	turn chan struct{} // holds a token while nobody uses the fields below

	closed  bool
	conn    *tpmio.Conn // nil when it has to be opened again
	session *session    // nil until needed
	cached  *Key        // the key at cachedAt; nil if none is loaded
	cacheAt tpm2.TPMHandle
	eks     []*endorsementKey // nil until read; then those with a certificate, best first
	ek      *endorsementKey   // the one in use
	fixed   map[uint32]*Key   // checked keys at persistent handles
}

// Open connects to the TPM at path: "/dev/tpmrm0", "/dev/tpm0", or the Unix socket of a software
// TPM. It flushes keys and sessions that a dead client left in the TPM, unless a resource
// manager does that. Errors: NotFound without a TPM, Busy when another process owns it, Forbidden
// without permission.
func Open(ctx context.Context, path string) (*TPM, error) {
	t := &TPM{path: path, turn: make(chan struct{}, 1), fixed: map[uint32]*Key{}}
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	t.turn <- struct{}{}
	return t, nil
}

// Close flushes what this TPM holds for us and ends the connection.
func (t *TPM) Close() error {
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if t.closed {
		return nil
	}
	t.closed = true
	if t.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if t.conn.Broken() == nil {
		t.flush(t.conn.With(ctx))
	}
	return t.conn.Close()
}

func (t *TPM) connect(ctx context.Context) error {
	first, cancel := context.WithTimeoutCause(ctx, busyAfter, tpmio.Busy(t.path))
	defer cancel()
	conn, err := tpmio.Open(first, t.path)
	if err != nil {
		return err
	}
	if err := flushLeftovers(conn, conn.With(first)); err != nil {
		conn.Close()
		if first.Err() != nil && !errors.Is(ctx.Err(), context.Canceled) {
			return tpmio.Busy(t.path)
		}
		return fmt.Errorf("the first command to the TPM at %s: %w", t.path, err)
	}
	t.conn, t.session, t.cached = conn, nil, nil
	return nil
}

// flushLeftovers frees the slots of clients that ended without cleaning up. We are the only owner, so all
// that is loaded belongs to the dead.
func flushLeftovers(conn *tpmio.Conn, tpm transport.TPM) error {
	if conn.Managed() {
		return nil
	}
	for _, kind := range []tpm2.TPMHT{tpm2.TPMHTTransient, tpm2.TPMHTHMACSession, tpm2.TPMHTPolicySession} {
		// For this command the last two mean loaded and saved sessions (Part 2 §7.2, TPM_HT).
		found, err := (tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: 254,
		}).Execute(tpm)
		if err != nil {
			return err
		}
		handles, err := found.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range handles.Handle {
			_, err := (tpm2.FlushContext{FlushHandle: h}).Execute(tpm)
			if err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
				return fmt.Errorf("flushing 0x%08x: %w", uint32(h), err)
			}
		}
	}
	return nil
}

// do runs one operation with the TPM to itself. what completes "TPM: " in errors. When a slot is
// missing, or something is gone that was there before (a session in a suspend, a persistent key in
// a TPM2_Clear), do frees every slot and runs fn once more: fn must stand that.
func (t *TPM) do(ctx context.Context, what string, fn func(tpm transport.TPM) error) error {
	select {
	case <-t.turn:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the TPM, %s: %w", what, context.Cause(ctx))
	}
	defer func() { t.turn <- struct{}{} }()
	if t.closed {
		return fmt.Errorf("TPM: %s: it is closed", what)
	}
	if t.conn != nil && t.conn.Broken() != nil {
		t.conn.Close()
		t.conn = nil
		t.forget()
	}
	if t.conn == nil {
		if err := t.connect(ctx); err != nil {
			return err
		}
	}
	tpm := t.conn.With(ctx)
	err := fn(tpm)
	if err != nil && retryable(err) {
		t.flush(tpm)
		clear(t.fixed)
		if ferr := flushLeftovers(t.conn, tpm); ferr != nil {
			return explain(what, ferr)
		}
		err = fn(tpm)
	}
	if errors.Is(err, tpm2.TPMRCLockout) && unlock(tpm) == nil {
		err = fn(tpm)
	}
	if err != nil {
		if s := t.session; s != nil && (s.spoiled || errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)) {
			t.flush(tpm) // the next call agrees on a new session
		}
		return explain(what, err)
	}
	return nil
}

// forget drops what is only true of the TPM's state as this connection saw it: after a restart
// another TPM may answer at the same path.
func (t *TPM) forget() {
	t.session, t.cached, t.eks, t.ek = nil, nil, nil, nil
	clear(t.fixed)
}

// flush frees the slots that we hold. Errors do not matter: what is not there any more is free.
func (t *TPM) flush(tpm transport.TPM) {
	t.unload(tpm)
	if t.session != nil {
		(tpm2.FlushContext{FlushHandle: t.session.handle}).Execute(tpm)
		t.session = nil
	}
}

func (t *TPM) unload(tpm transport.TPM) {
	if t.cached != nil {
		(tpm2.FlushContext{FlushHandle: t.cacheAt}).Execute(tpm)
		t.cached = nil
	}
}

func retryable(err error) bool {
	for _, rc := range []tpm2.TPMRC{
		tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles,
		tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCReferenceS2,
		tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCHandle,
	} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// explain gives the errors that a person can do something about their kind and hint.
func explain(what string, err error) error {
	var told *cradle.Error
	switch {
	case errors.As(err, &told):
		return err
	case errors.Is(err, tpm2.TPMRCLockout):
		return cradle.Errorf(cradle.Busy, "%s: the TPM is locked after failed or interrupted uses of protected keys", what).
			WithHint("leave it powered for some time, or reset the lockout with tpm2_dictionarylockout --clear-lockout")
	case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
		return cradle.Errorf(cradle.Forbidden, "%s: a hierarchy of the TPM is protected by an authorisation value", what).
			WithHint("empty the owner and endorsement authorisation, for example with tpm2_changeauth")
	case errors.Is(err, tpm2.TPMRCHierarchy):
		return cradle.Errorf(cradle.Forbidden, "%s: a hierarchy of the TPM is switched off", what).
			WithHint("switch the TPM's owner and endorsement hierarchies on in the firmware's setup")
	case errors.Is(err, tpm2.TPMRCNVSpace):
		return cradle.Errorf(cradle.TooLarge, "%s: the TPM's NV memory is full", what).
			WithHint("remove persistent keys or NV indices that are not needed (tpm2_getcap handles-persistent, handles-nv-index)")
	}
	return fmt.Errorf("TPM: %s: %w", what, err)
}

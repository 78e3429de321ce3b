package tpmkey_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
)

func TestCertificates(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	ctx := t.Context()
	idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(ctx))
	_, err := tpm.ReadCertificate(ctx, tpmkey.NVIDevID)
	if cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("reading before writing: %v", err)
	}
	// Sizes around one and two chunks; each replaces the one before, for the same key.
	for _, size := range []int{350, 1000, 1024, 1500, 1990} {
		cert := selfSigned(t, idevid.Public(), size)
		for range 2 { // the second time it is there already
			if err := tpm.WriteCertificate(ctx, tpmkey.NVIDevID, cert); err != nil {
				t.Fatalf("certificate of %d bytes: %v", len(cert), err)
			}
		}
		if got := must[[]byte](t)(tpm.ReadCertificate(ctx, tpmkey.NVIDevID)); !bytes.Equal(got, cert) {
			t.Errorf("read %d bytes, wrote %d", len(got), len(cert))
		}
	}
	index, _, err := tpm.FindCertificate(ctx, idevid.Public())
	if err != nil || index != tpmkey.NVIDevID {
		t.Errorf("found at 0x%08x: %v", index, err)
	}
	other := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if _, _, err := tpm.FindCertificate(ctx, other.Public()); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("certificate of an unknown key: %v", err)
	}
	before := must[[]byte](t)(tpm.ReadCertificate(ctx, tpmkey.NVIDevID))
	wantKind(t, "a certificate for another key", tpm.WriteCertificate(ctx, tpmkey.NVIDevID, selfSigned(t, other.Public(), 400)), cradle.Conflict)
	if after := must[[]byte](t)(tpm.ReadCertificate(ctx, tpmkey.NVIDevID)); !bytes.Equal(before, after) {
		t.Error("the refused write changed the index")
	}
	if err := tpm.WriteCertificate(ctx, tpmkey.NVIAK, selfSigned(t, other.Public(), 4000)); cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("a certificate of 4000 bytes: %v", err)
	}
	if err := tpm.WriteCertificate(ctx, tpmkey.NVIAK, []byte("no certificate")); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("not a certificate: %v", err)
	}
}

// The platform hierarchy closed, as firmware leaves it: switched off, or with a password.
func TestOwnerNV(t *testing.T) {
	for name, closePlatform := range map[string]func(t *testing.T, tpm transport.TPM){
		"switched off": func(t *testing.T, tpm transport.TPM) { hierarchyControl(t, tpm) },
		"password": func(t *testing.T, tpm transport.TPM) {
			_, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHPlatform, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			soft, _ := newTPM(t, tpmmaker.Options{})
			raw(t, soft, func(tpm transport.TPM) { closePlatform(t, tpm) })
			tpm := open(t, soft)
			ctx := t.Context()
			idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(ctx))
			for range 2 {
				cert := selfSigned(t, idevid.Public(), 1200)
				if err := tpm.WriteCertificate(ctx, tpmkey.NVIDevID, cert); err != nil {
					t.Fatal(err)
				}
				if got := must[[]byte](t)(tpm.ReadCertificate(ctx, tpmkey.NVIDevID)); !bytes.Equal(got, cert) {
					t.Error("read something else")
				}
			}
			tpm.Close()
			raw(t, soft, func(tpm transport.TPM) {
				read, err := (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(tpmkey.NVIDevID)}).Execute(tpm)
				if err != nil {
					t.Fatal(err)
				}
				if a := must[*tpm2.TPMSNVPublic](t)(read.NVPublic.Contents()).Attributes; a.PlatformCreate || !a.OwnerWrite {
					t.Errorf("index attributes %+v", a)
				}
			})
		})
	}
}

// TPM2_HierarchyControl(platform, phEnable off), which go-tpm has not.
func hierarchyControl(t *testing.T, tpm transport.TPM) {
	t.Helper()
	command := []byte{
		0x80, 0x02, 0, 0, 0, 32, 0, 0, 0x01, 0x21, // header: with sessions, TPM_CC_HierarchyControl
		0x40, 0, 0, 0x0c, // TPM_RH_PLATFORM
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // empty password
		0x40, 0, 0, 0x0c, 0, // platform, no
	}
	response := must[[]byte](t)(tpm.Send(command))
	if !bytes.Equal(response[6:10], make([]byte, 4)) {
		t.Fatalf("TPM2_HierarchyControl: %x", response)
	}
}

// A platform index that was written before the platform closed cannot be written again.
func TestPlatformClosedLater(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	key := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context())).Public()
	cert := selfSigned(t, key, 500)
	if err := tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, cert); err != nil {
		t.Fatal(err)
	}
	tpm.Close()
	raw(t, soft, func(tpm transport.TPM) {
		_, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHPlatform, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
	})
	tpm = open(t, soft)
	if err := tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, cert); err != nil {
		t.Errorf("the same certificate again: %v", err)
	}
	wantKind(t, "another certificate", tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, selfSigned(t, key, 600)), cradle.Forbidden)
	if got := must[[]byte](t)(tpm.ReadCertificate(t.Context(), tpmkey.NVIDevID)); !bytes.Equal(got, cert) {
		t.Error("the certificate changed")
	}
}

// A write that is cut anywhere is completed by the next.
func TestInterruptedWrite(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	key := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context())).Public()
	for i := range 25 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*150*time.Microsecond)
		err := tpm.WriteCertificate(ctx, tpmkey.NVIDevID, selfSigned(t, key, 1800))
		cancel()
		if err != nil && ctx.Err() == nil {
			t.Fatalf("write %d: %v", i, err)
		}
		cert := selfSigned(t, key, 1700)
		if err := tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, cert); err != nil {
			t.Fatalf("write after cut %d: %v", i, err)
		}
		if got := must[[]byte](t)(tpm.ReadCertificate(t.Context(), tpmkey.NVIDevID)); !bytes.Equal(got, cert) {
			t.Fatalf("read something else after cut %d", i)
		}
	}
}

// The index of another program is not touched, whatever it holds.
func TestOccupiedIndex(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	theirs := []byte("somebody's measurements")
	raw(t, soft, func(tpm transport.TPM) {
		public := tpm2.TPMSNVPublic{
			NVIndex: tpm2.TPMHandle(tpmkey.NVIDevID), NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(theirs)),
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true},
		}
		if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
		name := must[*tpm2.TPM2BName](t)(tpm2.NVName(&public))
		_, err := (tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: public.NVIndex, Name: *name},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: theirs},
		}).Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
	})
	tpm := open(t, soft)
	key := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context())).Public()
	wantKind(t, "an occupied index", tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, selfSigned(t, key, 500)), cradle.Conflict)
}

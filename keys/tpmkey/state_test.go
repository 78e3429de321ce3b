package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
)

// names returns the public areas of the long-lived keys.
func names(t *testing.T, tpm *tpmkey.TPM) (iak, idevid, ldevid string) {
	t.Helper()
	a := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
	i := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
	l := must[*tpmkey.Key](t)(tpm.EnsureLDevID(t.Context()))
	signs(t, a.Signer())
	signs(t, i)
	signs(t, l)
	return string(a.Public()), string(i.TPMTPublic()), string(l.TPMTPublic())
}

func TestRestart(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	iak, idevid, ldevid := names(t, tpm)
	blob := must[[]byte](t)(tpm.CreateKey(t.Context()))
	key := must[*tpmkey.Key](t)(tpm.LoadKey(t.Context(), blob))
	signs(t, key)

	// The TPM restarts under an open connection: one call may fail, the next connects afresh.
	if err := soft.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Log("the restart was not even noticed")
	}
	signs(t, key)
	if a, i, l := names(t, tpm); a != iak || i != idevid || l != ldevid {
		t.Error("other keys after a restart, in the same process")
	}
	tpm.Close()
	tpm = open(t, soft)
	if a, i, l := names(t, tpm); a != iak || i != idevid || l != ldevid {
		t.Error("other keys after a restart, in a new process")
	}
	signs(t, must[*tpmkey.Key](t)(tpm.LoadKey(t.Context(), blob)))
}

// TCG Keys §7.3: IAK and IDevID outlive TPM2_Clear, what belongs to the owner does not.
func TestClear(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	iak, idevid, ldevid := names(t, tpm)
	blob := must[[]byte](t)(tpm.CreateKey(t.Context()))
	must[*tpmkey.Key](t)(tpm.LoadKey(t.Context(), blob))
	cert := selfSigned(t, must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context())).Public(), 1000)
	if err := tpm.WriteCertificate(t.Context(), tpmkey.NVIDevID, cert); err != nil {
		t.Fatal(err)
	}
	tpm.Close()
	raw(t, soft, func(tpm transport.TPM) {
		if _, err := (tpm2.Clear{AuthHandle: tpm2.TPMRHLockout}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpmkey.HandleIDevID)}).Execute(tpm); err == nil {
			t.Fatal("the persistent key is still there")
		}
	})
	tpm = open(t, soft)
	_, err := tpm.LoadKey(t.Context(), blob)
	wantKind(t, "operational key from before the clear", err, cradle.Conflict)
	a, i, l := names(t, tpm)
	if a != iak || i != idevid {
		t.Error("IAK or IDevID key are others after TPM2_Clear")
	}
	if l == ldevid {
		t.Error("the LDevID key is the same after TPM2_Clear")
	}
	if got := must[[]byte](t)(tpm.ReadCertificate(t.Context(), tpmkey.NVIDevID)); !bytes.Equal(got, cert) {
		t.Error("the IDevID certificate did not outlive TPM2_Clear")
	}
}

// A key evicted while we hold a connection, as it may be through /dev/tpmrm0, is derived again.
func TestEvicted(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	_, idevid, _ := names(t, tpm)
	tpm.Close()
	evict := func(handle uint32) {
		raw(t, soft, func(tpm transport.TPM) {
			public, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}).Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
			_, err = (tpm2.EvictControl{
				Auth: tpm2.TPMRHOwner, PersistentHandle: tpm2.TPMHandle(handle),
				ObjectHandle: &tpm2.NamedHandle{Handle: tpm2.TPMHandle(handle), Name: public.Name},
			}).Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	evict(tpmkey.HandleIDevID)
	tpm = open(t, soft)
	if _, again, _ := names(t, tpm); again != idevid {
		t.Error("another IDevID key after it was evicted")
	}
}

func TestOccupiedHandles(t *testing.T) {
	for name, c := range map[string]struct {
		handle uint32
		ensure func(*tpmkey.TPM) error
	}{
		"IAK":    {tpmkey.HandleIAK, func(tpm *tpmkey.TPM) error { _, err := tpm.EnsureIAK(t.Context()); return err }},
		"IDevID": {tpmkey.HandleIDevID, func(tpm *tpmkey.TPM) error { _, err := tpm.EnsureIDevID(t.Context()); return err }},
		"LDevID": {tpmkey.HandleLDevID, func(tpm *tpmkey.TPM) error { _, err := tpm.EnsureLDevID(t.Context()); return err }},
		"SRK":    {tpmkey.HandleSRK, func(tpm *tpmkey.TPM) error { _, err := tpm.CreateKey(t.Context()); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			soft, _ := newTPM(t, tpmmaker.Options{})
			// Somebody else's signing key is there.
			template := tpm2.TPMTPublic{
				Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
				Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
			}
			var theirs []byte
			raw(t, soft, func(tpm transport.TPM) {
				made, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}).Execute(tpm)
				if err != nil {
					t.Fatal(err)
				}
				theirs = made.Name.Buffer
				_, err = (tpm2.EvictControl{
					Auth: tpm2.TPMRHOwner, PersistentHandle: tpm2.TPMHandle(c.handle),
					ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
				}).Execute(tpm)
				if err != nil {
					t.Fatal(err)
				}
			})
			tpm := open(t, soft)
			wantKind(t, "an occupied handle", c.ensure(tpm), cradle.Conflict)
			tpm.Close()
			raw(t, soft, func(tpm transport.TPM) {
				public, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(c.handle)}).Execute(tpm)
				if err != nil || !bytes.Equal(public.Name.Buffer, theirs) {
					t.Errorf("the other key was touched: %v", err)
				}
			})
		})
	}
}

// Slots that a dead client left full are freed at Open: loaded keys, loaded and saved sessions.
func TestStaleHandlesAreFlushed(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	raw(t, soft, func(tpm transport.TPM) {
		for range 3 {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(tpm); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			kind := tpm2.TPMSEHMAC
			if i%2 == 1 {
				kind = tpm2.TPMSEPolicy
			}
			s, err := (tpm2.StartAuthSession{
				TPMKey: tpm2.TPMRHNull, Bind: tpm2.TPMRHNull, NonceCaller: tpm2.TPM2BNonce{Buffer: make([]byte, 16)},
				SessionType: kind, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}, AuthHash: tpm2.TPMAlgSHA256,
			}).Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
			if i < 2 { // two saved, three loaded: full
				if _, err := (tpm2.ContextSave{SaveHandle: tpm2.TPMIDHContext(s.SessionHandle.HandleValue())}).Execute(tpm); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(tpm); err == nil {
			t.Fatal("there is still room in the TPM: the test proves nothing")
		}
	})
	tpm := open(t, soft)
	names(t, tpm)
	tpm.Close()
	raw(t, soft, func(tpm transport.TPM) {
		for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
			left, err := (tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 100}).Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
			if h := must[*tpm2.TPMLHandle](t)(left.CapabilityData.Data.Handles()); len(h.Handle) != 0 {
				t.Errorf("handles left: %x", h.Handle)
			}
		}
	})
}

func TestBusy(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	first := open(t, soft)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := tpmkey.Open(ctx, soft.Socket())
	wantKind(t, "a TPM that another process has", err, cradle.Busy)
	names(t, first)
	first.Close()
	names(t, open(t, soft))
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := tpmkey.Open(t.Context(), filepath.Join(dir, "none"))
	wantKind(t, "no TPM", err, cradle.NotFound)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = tpmkey.Open(t.Context(), file)
	wantKind(t, "a plain file", err, cradle.Invalid)
}

// A call whose context ends does not spoil the TPM for the next.
func TestCancelledCalls(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{EKType: tpmmaker.RSA2048})
	tpm := open(t, soft)
	iak, _, _ := names(t, tpm)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*200*time.Microsecond)
		_, err := tpm.Certify(ctx, must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context())), []byte("x"))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call number %d: %v", i, err)
		}
	}
	if again, _, _ := names(t, tpm); again != iak {
		t.Error("another IAK")
	}
	tpm.Close()
	if _, err := tpm.EnsureIAK(t.Context()); err == nil {
		t.Error("a closed TPM answers")
	}
}

func TestConcurrentUse(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
	var keys []crypto.Signer
	for range 3 {
		keys = append(keys, must[*tpmkey.Key](t)(tpm.LoadKey(t.Context(), must[[]byte](t)(tpm.CreateKey(t.Context())))))
	}
	keys = append(keys, idevid, must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context())).Signer())
	var wg sync.WaitGroup
	for _, key := range keys {
		for range 2 {
			wg.Go(func() {
				for range 5 {
					signs(t, key)
				}
			})
		}
		wg.Go(func() {
			if _, err := tpm.Certify(t.Context(), idevid, []byte("extra")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Keys and certificates as a person with tpm2-tools and openssl sees them.
func TestOtherTools(t *testing.T) {
	testenv.Require(t, "tpm2_readpublic", "tpm2_nvread", "openssl")
	soft, unit := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	ctx := t.Context()
	iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(ctx))
	idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(ctx))
	ldevid := must[*tpmkey.Key](t)(tpm.EnsureLDevID(ctx))
	cert := selfSigned(t, idevid.Public(), 900)
	if err := tpm.WriteCertificate(ctx, tpmkey.NVIDevID, cert); err != nil {
		t.Fatal(err)
	}
	tpm.Close()

	for handle, key := range map[uint32]crypto.PublicKey{
		tpmkey.HandleIAK: iak.Key().Public(), tpmkey.HandleIDevID: idevid.Public(), tpmkey.HandleLDevID: ldevid.Public(),
	} {
		der := filepath.Join(t.TempDir(), "pub.der")
		run(t, soft, "tpm2_readpublic", "-c", fmt.Sprintf("0x%08x", handle), "-f", "der", "-o", der)
		got := must[any](t)(x509.ParsePKIXPublicKey(must[[]byte](t)(os.ReadFile(der))))
		if !key.(*ecdsa.PublicKey).Equal(got) {
			t.Errorf("tpm2_readpublic sees another key at 0x%08x", handle)
		}
	}
	for index, want := range map[uint32][]byte{tpmkey.NVIDevID: cert, 0x01C0000A: unit.EKCert} {
		file := filepath.Join(t.TempDir(), "cert.der")
		run(t, soft, "tpm2_nvread", fmt.Sprintf("0x%08x", index), "-o", file)
		if got := must[[]byte](t)(os.ReadFile(file)); !bytes.Equal(got, want) {
			t.Errorf("tpm2_nvread sees something else at 0x%08x", index)
		}
		run(t, soft, "openssl", "x509", "-inform", "DER", "-in", file, "-noout", "-text")
	}
	use := open(t, soft) // and we can still open it after them
	names(t, use)
}

func run(t *testing.T, soft *swtpm.TPM, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+soft.Socket())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// selfSigned makes a certificate of about size bytes for a public key.
func selfSigned(t *testing.T, pub crypto.PublicKey, size int) []byte {
	t.Helper()
	ca := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour),
		Subject:         pkix.Name{CommonName: "unit-1"},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, max(0, size-300))}},
	}
	return must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, pub, ca))
}

// Package floor measures the crypto floor of one onboarding: the CPU time of the asymmetric
// cryptography that a server cannot avoid, and of TPM2_MakeCredential's symmetric part. No parsing, no
// memory of anything, no network. Whatever a server takes beyond it is overhead, so that a server is
// measured as a ratio that holds on any machine.
//
// One onboarding of ours is, on the server's side:
//
//	the line     a mutual handshake with the unit's station; verify the EK certificate's signature;
//	             MakeCredential twice; and for IAK and IDevID each verify the Certify, verify the CSR,
//	             sign the certificate.
//	the device   for LDevID and operational each a mutual handshake and the three operations above; on the first
//	             of these connections also the signed statement of the time; a mutual handshake
//	             with the provisioning service, and one with the hub.
//
// Each handshake is one that ours makes and cannot save: the certificate that authenticates changes from
// one to the next. A handshake that could be saved by keeping a connection does not count.
//
// A mutual handshake is: key exchange, signature, verify the client's certificate, verify CertificateVerify.
// All signatures are ECDSA P-256 with SHA-256, the EK is P-256 under a P-256 maker, key exchange is
// X25519MLKEM768, what both ends of Go's TLS 1.3 choose. Beside the onboarding's parts the P-256 key exchange is measured,
// for connections whose client offers nothing else.
package floor

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"runtime"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// What is measured.
const (
	KeyExchange = "X25519MLKEM768"
	EKProfile   = "P-256 (L-2), maker's CA P-256"
)

// Part is one kind of operation.
type Part int

// The kinds.
const (
	Exchange       Part = iota // key exchange of a handshake, server's side
	HandshakeSign              // the server's CertificateVerify
	VerifyLeaf                 // the client certificate's signature
	VerifyClient               // the client's CertificateVerify
	VerifyEK                   // the EK certificate's signature
	MakeCredential             // TPM2_MakeCredential
	VerifyCertify              // the IAK's signature over the attestation
	VerifyCSR                  // proof of possession
	IssueSign                  // the issuing key's signature
	TimeSign                   // the signature of the time
	ExchangeP256               // key exchange by P-256 alone; no part of an onboarding
	parts
)

var names = [parts]string{"key exchange", "handshake signature", "verify client certificate", "verify CertificateVerify",
	"verify EK certificate", "MakeCredential", "verify Certify", "verify CSR", "issuing signature", "statement of the time", "key exchange, P-256"}

func (p Part) String() string { return names[p] }

// Counts is how often each part occurs.
type Counts [parts]int

// Add returns the sum.
func (c Counts) Add(d Counts) Counts {
	for i := range d {
		c[i] += d[i]
	}
	return c
}

// Times returns a multiple.
func (c Counts) Times(n int) Counts {
	for i := range c {
		c[i] *= n
	}
	return c
}

// Building blocks.
var (
	ServerHandshake = Counts{Exchange: 1, HandshakeSign: 1}
	MutualHandshake = ServerHandshake.Add(Counts{VerifyLeaf: 1, VerifyClient: 1})
	// MutualP256 is a MutualHandshake with a client that offers P-256 alone.
	MutualP256 = MutualHandshake.Add(Counts{Exchange: -1, ExchangeP256: 1})
	Issuance   = Counts{VerifyCertify: 1, VerifyCSR: 1, IssueSign: 1}
	LineUnit   = MutualHandshake.Add(Counts{VerifyEK: 1, MakeCredential: 2}).Add(Issuance.Times(2))
	// PoweredOn has the handshakes for LDevID, operational, provisioning and hub.
	PoweredOn = MutualHandshake.Times(4).Add(Issuance.Times(2)).Add(Counts{TimeSign: 1})

	// Onboarding is the floor's definition.
	Onboarding = LineUnit.Add(PoweredOn)
	// Spared is what ours need not do of it: the hub's connection resumes the session of the registration; the station's
	// certificate was verified for the unit before; IDevID and LDevID were signed, and verified, by the same process.
	Spared = Counts{VerifyLeaf: 4, VerifyClient: 1, HandshakeSign: 1}
)

// Cost is the mean CPU time of each part.
type Cost [parts]time.Duration

// Of is the cost of that many parts.
func (c Cost) Of(n Counts) (sum time.Duration) {
	for i := range n {
		sum += time.Duration(n[i]) * c[i]
	}
	return sum
}

// floor holds the keys that the operations use.
type floor struct {
	key      *ecdsa.PrivateKey
	digest   [32]byte
	sig      []byte
	mlkem    []byte // client's encapsulation key
	x25519   []byte // client's share
	p256     []byte // client's share
	ek       *ecdh.PublicKey
	name     []byte
	secret   []byte
	mismatch error
}

func newFloor() (*floor, error) {
	f := &floor{name: make([]byte, 34), secret: make([]byte, 32)}
	rand.Read(f.name)
	rand.Read(f.secret)
	f.digest = sha256.Sum256(f.name)
	var err error
	if f.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if f.sig, err = ecdsa.SignASN1(rand.Reader, f.key, f.digest[:]); err != nil {
		return nil, err
	}
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		return nil, err
	}
	f.mlkem = dk.EncapsulationKey().Bytes()
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	f.x25519 = x.PublicKey().Bytes()
	ek, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	f.ek, f.p256 = ek.PublicKey(), ek.PublicKey().Bytes()
	return f, nil
}

func (f *floor) note(err error) {
	if err != nil && f.mismatch == nil {
		f.mismatch = err
	}
}

func (f *floor) sign() {
	_, err := ecdsa.SignASN1(rand.Reader, f.key, f.digest[:])
	f.note(err)
}

func (f *floor) verify() {
	if !ecdsa.VerifyASN1(&f.key.PublicKey, f.digest[:], f.sig) {
		f.note(fmt.Errorf("a good signature does not verify"))
	}
}

// exchange is what crypto/tls does on the server's side.
func (f *floor) exchange() {
	ek, err := mlkem.NewEncapsulationKey768(f.mlkem)
	if err != nil {
		f.note(err)
		return
	}
	ek.Encapsulate()
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	f.note(err)
	peer, err := ecdh.X25519().NewPublicKey(f.x25519)
	f.note(err)
	_, err = own.ECDH(peer)
	f.note(err)
}

// exchangeP256 is what crypto/tls does on the server's side for secp256r1.
func (f *floor) exchangeP256() {
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	f.note(err)
	peer, err := ecdh.P256().NewPublicKey(f.p256)
	f.note(err)
	_, err = own.ECDH(peer)
	f.note(err)
}

// makeCredential is TPM 2.0 Part 1 §24 for a P-256 EK.
func (f *floor) makeCredential() {
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		f.note(err)
		return
	}
	z, err := own.ECDH(f.ek)
	f.note(err)
	h, err := tpm2.TPMAlgSHA256.Hash()
	f.note(err)
	seed := tpm2.KDFe(h, z, "IDENTITY", own.PublicKey().Bytes()[1:33], f.ek.Bytes()[1:33], 256)
	block, err := aes.NewCipher(tpm2.KDFa(h, seed, "STORAGE", f.name, nil, 128))
	f.note(err)
	out := make([]byte, len(f.secret)+2)
	cipher.NewCFBEncrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(out[2:], f.secret) //nolint:staticcheck // the TPM's mode
	mac := hmac.New(sha256.New, tpm2.KDFa(h, seed, "INTEGRITY", nil, nil, 256))
	mac.Write(out)
	mac.Write(f.name)
	mac.Sum(nil)
}

// once runs one onboarding's operations in sequence, each other part once, and adds the CPU time of each part.
func (f *floor) once(spent *Cost) {
	ops := [parts]func(){Exchange: f.exchange, HandshakeSign: f.sign, VerifyLeaf: f.verify, VerifyClient: f.verify, VerifyEK: f.verify,
		MakeCredential: f.makeCredential, VerifyCertify: f.verify, VerifyCSR: f.verify, IssueSign: f.sign, TimeSign: f.sign, ExchangeP256: f.exchangeP256}
	for p, op := range ops {
		start := threadCPU()
		for range sampled(Part(p)) {
			op()
		}
		spent[p] += threadCPU() - start
	}
}

// sampled is how often once runs a part.
func sampled(p Part) int { return max(Onboarding[p], 1) }

// threadCPU is this thread's CPU time: what RUSAGE_THREAD says, in nanoseconds and up to this moment.
func threadCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic("internal error: no thread clock: " + err.Error())
	}
	return time.Duration(t.Nano())
}

// Sampler measures the floor again and again while something else runs, so that both meet the
// same processor: its clock rate, its neighbours, its caches.
type Sampler struct {
	stop  chan struct{}
	ended chan struct{}

	// Valid after ended.
	spent Cost
	n     int
	err   error
}

// every is the pause between samples; a sample is runs onboardings, of which the first warms up and does not count.
const (
	every = 150 * time.Millisecond
	runs  = 4
)

// Start begins to sample on a thread of its own.
func Start() (*Sampler, error) {
	f, err := newFloor()
	if err != nil {
		return nil, err
	}
	s := &Sampler{stop: make(chan struct{}), ended: make(chan struct{})}
	go s.run(f)
	return s, nil
}

func (s *Sampler) run(f *floor) {
	defer close(s.ended)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		var cold Cost
		f.once(&cold)
		for range runs - 1 {
			f.once(&s.spent)
			s.n++
		}
		s.err = f.mismatch
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
	}
}

// Stop ends sampling and returns the mean cost of each part, and of how many onboardings.
func (s *Sampler) Stop() (Cost, int, error) {
	close(s.stop)
	<-s.ended
	var mean Cost
	for p := range s.spent {
		if n := s.n * sampled(Part(p)); n > 0 {
			mean[p] = s.spent[p] / time.Duration(n)
		}
	}
	return mean, s.n, s.err
}

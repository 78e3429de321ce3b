// Package standing measures what it costs to revoke one certificate, to answer for one by OCSP, and to make one CRL
// shard, in a store with a given number of certificates. The provider and its status service run in this process, over
// the store of an installation whose server is stopped (package plant), filled by package fleet with four certificates per
// device. One thing is done after the other, so nothing shares a commit; HTTP ends at the handler.
package standing

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provider/status"
	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Kind is what is measured. A round measures each once, in this order.
type Kind int

// The kinds.
const (
	Revocation Kind = iota // of one certificate
	Afresh                 // an OCSP answer for a certificate just revoked: it has to be signed
	Cached                 // an OCSP answer that was signed before
	Nonced                 // an OCSP answer to a nonce, for any certificate
	CRL                    // a shard, after one more revocation in it
	Kinds
)

func (k Kind) String() string {
	return [Kinds]string{"revocation", "OCSP after revocation", "OCSP from cache", "OCSP with nonce", "CRL shard"}[k]
}

// perDevice is how many certificates a loaded device has.
const perDevice = 4

// url is what the certificates say; nobody asks there.
const url = "http://status.bench"

// Sample is what some operations of one kind took.
type Sample struct {
	Count   int
	CPU     time.Duration // per operation, of this process and the database's
	Wall    time.Duration // per operation
	Entries int           // of the CRL
}

// cert is what is kept of a loaded certificate.
type cert struct {
	serial    cradle.CertSerial
	authority string
}

// Site is one store.
type Site struct {
	Certificates int
	plant        *plant.Plant
	db           *providerdb.DB
	prov         *provider.Provider
	log          *slog.Logger
	status       http.Handler         // of this round
	requests     map[string]*requests // by authority

	unrevoked []cert // in no order; of all profiles but operational
	batch     []cert // of this round
	some      []cert // any, for nonces

	// The first shard of operational certificates: all but some at its end are revoked.
	authority string
	shard     int64
	spare     []cert
	entries   int
}

// Open makes an installation and loads so many certificates. rounds bounds how often each kind is measured: as many operational
// certificates are left to be revoked for the CRL.
func Open(ctx context.Context, store, bin, dir string, certificates, rounds int) (_ *Site, err error) {
	devices := certificates / perDevice
	if devices <= rounds {
		return nil, fmt.Errorf("%d certificates are too few for %d rounds", certificates, rounds)
	}
	s := &Site{Certificates: devices * perDevice, requests: map[string]*requests{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.plant, err = plant.New(ctx, store, bin, dir, ""); err != nil {
		return nil, err
	}
	if err := s.plant.Stop(); err != nil {
		return nil, err
	}
	if s.db, err = providerdb.Open(ctx, s.plant.Database("provider")); err != nil {
		return nil, err
	}
	if err := s.load(ctx, devices, rounds); err != nil {
		return nil, err
	}
	if err := s.plant.Settle(ctx); err != nil {
		return nil, err
	}
	vault, err := filekey.LoadVault(filepath.Join(s.plant.Data(), "key-encryption-key"))
	if err != nil {
		return nil, err
	}
	s.log = slog.New(slog.NewJSONHandler(io.Discard, nil)) // written as a server does, for nobody
	if s.prov, err = provider.New(ctx, provider.Config{Store: s.db, Vault: vault, Origin: plant.Host, StatusURL: url, Log: s.log}); err != nil {
		return nil, err
	}
	for _, a := range s.prov.StatusIssuers() {
		if s.requests[a.ID], err = newRequests(a.Cert); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// load fills the store. Of a large one, certificates of every so many-th device are remembered.
func (s *Site) load(ctx context.Context, devices, spare int) error {
	full := min(devices, provider.ShardSize)
	stride := max(devices/2000, 1)
	now := time.Now().UTC().Truncate(time.Second)
	err := fleet.LoadStatus(ctx, s.plant, s.db, url, devices, func(i int, u *providerdb.Unit) {
		for j := range u.Issued {
			c := &u.Issued[j].Certificate
			kept := cert{c.Serial, c.Authority}
			if c.Profile == cradle.Operational && i <= full {
				if s.authority == "" {
					s.authority, s.shard = c.Authority, provider.ShardOf(c.DER)
				}
				if i > full-spare {
					s.spare = append(s.spare, kept)
				} else {
					c.Revoked, c.Reason = now, "loaded"
				}
				continue
			}
			if i%stride == 0 && c.Profile != cradle.Operational {
				s.unrevoked = append(s.unrevoked, kept)
			}
		}
	})
	mathrand.Shuffle(len(s.unrevoked), func(i, j int) { s.unrevoked[i], s.unrevoked[j] = s.unrevoked[j], s.unrevoked[i] })
	s.some = append(s.some, s.unrevoked...)
	s.entries = full - spare
	return err
}

// Close ends it. The folder stays.
func (s *Site) Close() {
	if s.db != nil {
		_ = s.db.Close()
	}
	if s.plant != nil {
		s.plant.Close()
	}
}

// Revocable is how many certificates can be revoked in all rounds.
func (s *Site) Revocable() int { return len(s.unrevoked) }

// answers is how many OCSP answers are measured for each revocation: short ones more often. Afresh asks servers with
// empty caches, one after the other.
var answers = [Kinds]int{Afresh: 10, Cached: 50, Nonced: 15}

// Measure does operations of one kind: n revocations, answers to them, answers from the cache or with nonces, or one CRL.
func (s *Site) Measure(ctx context.Context, k Kind, n int) (Sample, error) {
	var do func(i int) error
	after := func() error { return nil }
	x := Sample{Count: n}
	switch k {
	case Revocation:
		if len(s.unrevoked) < n {
			return x, errors.New("internal error: no certificates are left to be revoked")
		}
		s.batch, s.unrevoked = s.unrevoked[:n], s.unrevoked[n:]
		do = func(i int) error { return s.revoke(ctx, s.batch[i]) }
	case Afresh, Cached, Nonced:
		var asked []question
		for i := range n * answers[k] {
			q := question{cert: s.batch[i%len(s.batch)]}
			if k == Nonced {
				q.cert = s.some[mathrand.IntN(len(s.some))]
				q.nonce = make([]byte, 32)
				rand.Read(q.nonce)
			}
			var err error
			if q.der, err = s.requests[q.authority].of(q.serial, q.nonce); err != nil {
				return x, err
			}
			asked = append(asked, q)
		}
		x.Count = len(asked)
		do = func(i int) error {
			if k == Afresh && i%len(s.batch) == 0 {
				s.status = status.New(status.Config{Source: s.prov, Log: s.log})
			}
			return s.ask(ctx, &asked[i])
		}
		after = func() error { return check(asked, k != Nonced) }
	case CRL:
		if len(s.spare) == 0 {
			return x, errors.New("internal error: no certificates are left in the shard")
		}
		if err := s.revoke(ctx, s.spare[0]); err != nil {
			return x, err
		}
		s.spare, s.entries = s.spare[1:], s.entries+1
		x.Count, x.Entries = 1, s.entries
		var der []byte
		do = func(int) (err error) {
			_, der, err = s.prov.CRL(ctx, s.authority, s.shard)
			return err
		}
		after = func() error { return checkCRL(der, s.entries) }
	}
	runtime.GC() // of what came before
	db, cpu, start := s.plant.DatabaseCPU(), ownCPU(), time.Now()
	for i := range x.Count {
		if err := do(i); err != nil {
			return x, fmt.Errorf("%s: %w", k, err)
		}
	}
	x.Wall = time.Since(start) / time.Duration(x.Count)
	spent := ownCPU() - cpu
	for pid, t := range s.plant.DatabaseCPU() {
		spent += t - db[pid]
	}
	x.CPU = spent / time.Duration(x.Count)
	if err := after(); err != nil {
		return x, fmt.Errorf("%s: %w", k, err)
	}
	return x, nil
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("internal error: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *Site) revoke(ctx context.Context, c cert) error {
	_, _, err := s.prov.ChangeCertificate(ctx, plant.Account, c.serial, provider.Revoke, "keyCompromise")
	return err
}

// question is an OCSP request, and its answer.
type question struct {
	cert
	nonce, der []byte
	answer     *httptest.ResponseRecorder
}

func (s *Site) ask(ctx context.Context, q *question) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/ocsp", bytes.NewReader(q.der))
	if err != nil {
		return err
	}
	q.answer = httptest.NewRecorder()
	s.status.ServeHTTP(q.answer, r)
	return nil
}

// check sees that what was measured were answers: revoked, each of them, or with the nonce of the question.
func check(asked []question, revoked bool) error {
	for _, q := range asked {
		b := q.answer.Body.Bytes()
		says, err := verdict(b)
		if err != nil || q.answer.Code != http.StatusOK || revoked && says != tagRevoked || !bytes.Contains(b, q.nonce) {
			return fmt.Errorf("answer for %s: HTTP %d, standing [%d], %v", q.serial, q.answer.Code, says, err)
		}
	}
	return nil
}

func checkCRL(der []byte, entries int) error {
	n, err := crlEntries(der)
	if err != nil || n != entries {
		return fmt.Errorf("it has %d entries, want %d: %v", n, entries, err)
	}
	return nil
}

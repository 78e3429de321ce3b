package providerdb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// fleet makes what a store is given for units of one order, in sizes as they are.
type fleet struct {
	*providerdb.DB
	now time.Time
}

func filled(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
	return b[:n]
}

func hexOf(s ...any) string { return ca.Digest([]byte(fmt.Sprint(s...))) }

func (f *fleet) unit(n int) provider.Device {
	return provider.Device{ID: cradle.DeviceID(fmt.Sprintf("acme-sn%08d", n)), Account: "acme", OEM: "maker1", Order: "order-1", Serial: fmt.Sprintf("SN%08d", n),
		Tier: cradle.Simulator, Maker: "demo", Anchor: hexOf("anchor"), Issuers: []string{hexOf("issuer")}, EKDigest: hexOf("ek", n), EKCert: filled(500), IAK: filled(88),
		State: cradle.Made, Created: f.now}
}

func (f *fleet) intent(d *provider.Device, p cradle.Profile) *provider.Intent {
	now := time.Now()
	return &provider.Intent{ID: fmt.Sprintf("%014x%010x", now.UnixMicro(), rand.Uint64()>>24), Account: d.Account, Device: d.ID, Profile: p, Operation: provider.Enroll,
		Authority: hexOf("ca", p), AuthCert: hexOf("auth", d.ID), AuthProfile: cradle.IDevID, CSR: hexOf("csr", d.ID, p), SPKI: hexOf("spki", d.ID, p),
		Challenge: fmt.Sprintf("%012x-%s", now.UnixMilli(), hexOf("challenge", d.ID, p)), Serial: ca.SerialString(ca.LeafSerial(now)),
		Created: now, Replica: "replica", Lineage: string(p)}
}

func (f *fleet) certificate(i *provider.Intent) (provider.Certificate, ledger.Leaf) {
	return provider.Certificate{Digest: hexOf(i.Serial), Serial: i.Serial, Account: i.Account, Device: i.Device, Profile: i.Profile, Authority: i.Authority, DER: filled(800),
		NotBefore: i.Created, NotAfter: i.Created.Add(time.Hour), Slot: provider.Current, Intent: i.ID, Issued: i.Created, Lineage: i.Lineage}, ledger.Leaf{Log: "acme", Kind: ledger.KindIssuance, Time: i.Created, Data: filled(1000)}
}

// load stores units that are accepted, as many as can be onboarded later, with an IAK and an IDevID certificate each.
func (f *fleet) load(ctx context.Context, from, n int) error {
	for ; n > 0; n -= 500 {
		var units []providerdb.Unit
		for range min(n, 500) {
			u := providerdb.Unit{Device: f.unit(from)}
			u.Device.State = cradle.Accepted
			for _, p := range []cradle.Profile{cradle.IAK, cradle.IDevID} {
				i := f.intent(&u.Device, p)
				c, leaf := f.certificate(i)
				u.Issued = append(u.Issued, providerdb.Issued{Certificate: c, Intent: *i, Leaf: leaf})
			}
			units = append(units, u)
			from++
		}
		if err := f.LoadDevices(ctx, "acme", "order-1", units); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) issue(ctx context.Context, i *provider.Intent, birth *provider.Birth) error {
	if _, err := f.BeginIssue(ctx, i, birth, ""); err != nil {
		return err
	}
	c, leaf := f.certificate(i)
	return f.FinishIssue(ctx, i.ID, c, leaf)
}

// BenchmarkOnboarding is what the store does for a unit's four certificates, 32 units at once: IAK and IDevID of a new
// unit, LDevID and operational of one that was accepted. Beside it CRADLE_BENCH_DEVICES units (0) are there before.
// The CPU is that of this process and of PostgreSQL's.
func BenchmarkOnboarding(b *testing.B) {
	for _, engine := range []string{"sqlite", "postgres"} {
		b.Run(engine, func(b *testing.B) {
			url, pids := filepath.Join(b.TempDir(), "provider.db"), func() []int { return nil }
			if engine == "postgres" {
				s, err := testenv.StartPostgres()
				if err != nil {
					b.Skip(err)
				}
				b.Cleanup(s.Close)
				url, pids = s.Database(b), s.Pids
			}
			d, err := providerdb.Open(b.Context(), url)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { d.Close() })
			f := &fleet{d, time.Now().UTC()}
			leaf := ledger.Leaf{Log: "acme", Kind: "x", Time: f.now, Data: []byte("x")}
			if err := d.CreateAccount(b.Context(), provider.Account{ID: "acme", OrderKey: []byte("k"), Created: f.now}, nil, nil, leaf); err != nil {
				b.Fatal(err)
			}
			if err := d.CreateOrder(b.Context(), provider.Order{ID: "order-1", Account: "acme", OEM: "maker1", JWS: []byte("j"), Quantity: 1 << 40, State: provider.OrderOpen, Created: f.now}, leaf); err != nil {
				b.Fatal(err)
			}
			there, _ := strconv.Atoi(os.Getenv("CRADLE_BENCH_DEVICES"))
			if err := f.load(b.Context(), 0, there+b.N); err != nil {
				b.Fatal(err)
			}
			var next atomic.Int64
			own, database := ownCPU(), databaseCPU(pids())
			b.SetParallelism(16)
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					n := there + int(next.Add(1)) - 1
					born, accepted := f.unit(n+1<<24), f.unit(n)
					for _, profile := range []cradle.Profile{cradle.IAK, cradle.IDevID} {
						if err := f.issue(b.Context(), f.intent(&born, profile), &provider.Birth{Device: born}); err != nil {
							b.Error(err)
						}
					}
					for _, profile := range []cradle.Profile{cradle.LDevID, cradle.Operational} {
						if err := f.issue(b.Context(), f.intent(&accepted, profile), nil); err != nil {
							b.Error(err)
						}
					}
				}
			})
			b.StopTimer()
			b.ReportMetric(float64((ownCPU()-own).Microseconds())/float64(b.N), "cpu-µs/op")
			if engine == "postgres" {
				b.ReportMetric(float64((databaseCPU(pids())-database).Microseconds())/float64(b.N), "db-µs/op")
			}
		})
	}
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// databaseCPU is the time of PostgreSQL's processes (proc_pid_stat(5), in hundredths of a second).
func databaseCPU(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))[11:13] {
			n, _ := strconv.Atoi(field)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

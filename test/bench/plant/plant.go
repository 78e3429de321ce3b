// Package plant is an installation to be measured: the real binaries, a real "cradle serve" as a child
// process over SQLite or a PostgreSQL cluster of its own, set up by the commands that a user runs, and
// the CPU time that server and database have taken.
package plant

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// Names within an installation.
const (
	Account cradle.AccountID = "bench"
	OEM     cradle.OEMID     = "benchworks"
	Maker   cradle.MakerID   = "soft-tpm"
	Line    cradle.OrderID   = "ord-line"  // of the units that are measured
	Fleet   cradle.OrderID   = "ord-fleet" // of the devices that are there before
	Units                    = 9_999_999   // of each order
	Host                     = "localhost" // that serve names its logs by
)

// Serial is a unit's serial number; both orders count from 1 with a prefix of their own.
func Serial(order cradle.OrderID, n int) string {
	return map[cradle.OrderID]string{Line: "u", Fleet: "f"}[order] + fmt.Sprintf("%07d", n)
}

// Build compiles the commands into dir, as make build does. It is to be called from the module's folder.
func Build(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/",
		"github.com/cradle-iot/cradle/cmd/cradle", "github.com/cradle-iot/cradle/cmd/cradle-oem")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Plant is one installation.
type Plant struct {
	Store string // "sqlite" or "postgres"
	Dir   string
	URL   string // PostgreSQL's, empty for SQLite
	Maker *softkey.Maker

	bin    string
	pprof  string
	listen string
	pg     *testenv.Server
	serve  *exec.Cmd
	exited chan error
}

// New makes an installation in dir, started and ready for units: account, OEM, maker, two orders
// accepted by the OEM, and the operational CAs registered for provisioning. pprof may be an
// address at which the server serves its profiles.
func New(ctx context.Context, store, bin, dir, pprof string) (_ *Plant, err error) {
	p := &Plant{Store: store, Dir: dir, bin: bin, pprof: pprof}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if store == "postgres" {
		if p.pg, err = testenv.StartPostgres(); err != nil {
			return nil, err
		}
		if p.URL, err = p.pg.NewDatabase(); err != nil {
			return nil, err
		}
	}
	// A port for good: orders hold the provider's address.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.listen = ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, err
	}
	if p.Maker, err = softkey.NewMaker("Software TPM maker"); err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	return p, p.acts(ctx)
}

// Path is a file below the installation's folder.
func (p *Plant) Path(elem ...string) string {
	return filepath.Join(append([]string{p.Dir}, elem...)...)
}

// Data is the server's data folder.
func (p *Plant) Data() string { return p.Path("data") }

// Database names a custodian's store as serve does.
func (p *Plant) Database(custodian string) string {
	if p.URL != "" {
		return p.URL
	}
	return filepath.Join(p.Data(), custodian+".db")
}

// Roots are the anchors of the server's TLS.
func (p *Plant) Roots() (*x509.CertPool, error) {
	ders, err := p.RootsDER()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
	}
	return pool, nil
}

// RootsDER are the same in DER.
func (p *Plant) RootsDER() (ders [][]byte, err error) {
	b, err := os.ReadFile(filepath.Join(p.Data(), "context.json"))
	if err != nil {
		return nil, err
	}
	var c admin.Context
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	for rest := []byte(c.Anchors); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		ders = append(ders, block.Bytes)
	}
	if len(ders) == 0 {
		return nil, errors.New("context.json holds no anchors")
	}
	return ders, nil
}

// IDScope is the provisioning service's.
func (p *Plant) IDScope() (string, error) {
	b, err := os.ReadFile(filepath.Join(p.Data(), "endpoints.json"))
	if err != nil {
		return "", err
	}
	var s admin.Status
	if err := json.Unmarshal(b, &s); err != nil {
		return "", err
	}
	return s.IDScope, nil
}

// PID is the server's.
func (p *Plant) PID() int { return p.serve.Process.Pid }

// Addr is where the server listens.
func (p *Plant) Addr() string { return p.listen }

// Start runs the server and waits until it is ready.
func (p *Plant) Start(ctx context.Context) error {
	args := []string{"serve", "--data", p.Data(), "--host", Host, "--listen", p.listen}
	if p.URL != "" {
		args = append(args, "--db", p.URL)
	}
	if p.pprof != "" {
		args = append(args, "--pprof", p.pprof)
	}
	log, err := os.OpenFile(p.Path("serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.bin, "cradle"), args...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ready := make(chan struct{})
	exited := make(chan error, 1)
	go func() {
		sc := bufio.NewScanner(out)
		for first := true; sc.Scan(); first = false {
			if first {
				close(ready)
			}
		}
		exited <- cmd.Wait()
	}()
	p.serve, p.exited = cmd, exited
	select {
	case <-ready:
		return nil
	case err := <-exited:
		p.serve = nil
		text, _ := os.ReadFile(p.Path("serve.log"))
		return fmt.Errorf("cradle serve ended (%v): %s", err, lastLines(string(text)))
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.Stop())
	case <-time.After(time.Minute):
		return errors.Join(errors.New("cradle serve is not ready after a minute"), p.Stop())
	}
}

func lastLines(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-1000):]
}

// Stop ends the server in order.
func (p *Plant) Stop() error {
	if p.serve == nil {
		return nil
	}
	cmd := p.serve
	p.serve = nil
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.exited:
		if err != nil {
			return fmt.Errorf("cradle serve: %w", err)
		}
		return nil
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-p.exited
		return errors.New("cradle serve did not stop")
	}
}

// Settle does now what PostgreSQL does by itself a while later, after a load or once tables are no longer empty. Its
// autovacuum stays on; but to look at all tables for the first time takes two seconds of a processor, in some round or
// other, and until then statements keep plans that were made for tables without rows.
func (p *Plant) Settle(ctx context.Context) error {
	if p.URL == "" {
		return nil
	}
	c, err := pgx.Connect(ctx, p.URL)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for _, q := range []string{"VACUUM ANALYZE", "CHECKPOINT"} {
		if _, err := c.Exec(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// Close stops everything. The folder stays.
func (p *Plant) Close() {
	_ = p.Stop()
	if p.pg != nil {
		p.pg.Close()
	}
}

// Run runs a command of the installation to its end.
func (p *Plant) Run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, program), args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// acts does what the builder, the operator and the OEM do once.
func (p *Plant) acts(ctx context.Context) error {
	maker := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Maker.Cert.Raw})
	if err := os.WriteFile(p.Path("maker.pem"), maker, 0o644); err != nil {
		return err
	}
	operator := func(args ...string) error {
		_, err := p.Run(ctx, "cradle", append(args, "--data", p.Data())...)
		return err
	}
	oem := func(args ...string) error {
		_, err := p.Run(ctx, "cradle-oem", append(args, "--dir", p.Path("oem"))...)
		return err
	}
	err := errors.Join(
		operator("account", "create", string(Account), "--out", p.Path("account")),
		oem("init"),
		operator("oem", "add", string(OEM), "--key", p.Path("oem", "oem.pub")),
		operator("tpm-maker", "import", p.Path("maker.pem"), "--maker", string(Maker), "--tier", "simulator"))
	if err != nil {
		return err
	}
	for _, id := range []cradle.OrderID{Line, Fleet} {
		file, jws := p.Path(string(id)+".toml"), p.Path(string(id)+".jws")
		first, last := Serial(id, 1), Serial(id, Units)
		text := fmt.Sprintf("id = %q\nmodel = \"Bench\"\nquantity = %d\nserial_prefix = %q\nserial_first = %q\nserial_last = %q\nnaming = \"{account}-{serial}\"\n"+
			"tiers = [\"simulator\"]\ntpm_makers = [%q]\n", id, Units, first[:1], first[1:], last[1:], Maker)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		if err := errors.Join(
			operator("order", "create", "--account", string(Account), "--oem", string(OEM), "--file", file, "--out", jws),
			oem("order", "accept", jws)); err != nil {
			return err
		}
	}
	return operator("attestation", "register", "--account", string(Account))
}

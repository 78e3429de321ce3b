package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/permit"
)

// SignerServe says where the issuing keys are used, when not in this process.
type SignerServe struct {
	Signer           string   `help:"URL of a signer apart (serve --role signer): this process then holds no issuing keys." placeholder:"URL"`
	SignerCredential string   `name:"signer-credential" help:"Credential that the signer wrote for this front end." placeholder:"FILE" type:"existingfile"`
	Front            []string `name:"front" help:"With --role signer: names of the EST front ends; a credential is written for each." default:"front-1" placeholder:"NAME"`
	PermitRate       int      `name:"permit-rate" help:"With --role signer: permits taken of one front end in a second." default:"200" placeholder:"N"`
}

const signerRole = "signer"

// roles checks which services run here.
func (c *ServeCmd) roles() error {
	switch {
	case slices.Equal(c.Role, []string{signerRole}):
		if c.DB == "" {
			return cli.Usagef("--role signer needs --db: the signer and its front ends share a PostgreSQL database")
		}
		if c.StatusURL == "" {
			return cli.Usagef("--role signer needs --status-url, which goes into certificates: give it what the front ends are given")
		}
		if c.Signer != "" {
			return cli.Usagef("--signer is for front ends, not for the signer itself")
		}
		return nil
	case slices.Contains(c.Role, signerRole):
		return cli.Usagef("--role signer runs in a process of its own, without other services")
	case !slices.Equal(slices.Sorted(slices.Values(c.Role)), []string{"hub", "provider", "provisioning"}):
		return cli.Usagef("--role %s: provider, provisioning and hub run together in one process; only the signer can be apart", strings.Join(c.Role, ","))
	case (c.Signer == "") != (c.SignerCredential == ""):
		return cli.Usagef("--signer and --signer-credential go together")
	case c.Signer != "" && c.DB == "":
		return cli.Usagef("--signer needs --db: the signer and its front ends share a PostgreSQL database")
	}
	return nil
}

// remoteSigner is the signer apart of a front end, nil without one.
func (c *SignerServe) remoteSigner() (*permit.Client, error) {
	if c.Signer == "" {
		return nil, nil
	}
	own, signer, err := permit.ReadCredential(c.SignerCredential)
	if err != nil {
		return nil, err
	}
	return permit.NewClient(strings.TrimSuffix(c.Signer, "/"), own, signer), nil
}

// once reads a file of the data folder, which is made at the first start.
func (in *installation) once(name string, fresh func() ([]byte, error)) ([]byte, error) {
	file := filepath.Join(in.cmd.Data, name)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = fresh(); err == nil {
			err = durable.WriteFile(file, b, 0o600)
		}
	}
	return b, err
}

func secret() ([]byte, error) {
	b := make([]byte, 32)
	rand.Read(b)
	return b, nil
}

// buildSigner makes the process that holds the issuing keys: it takes permits of front ends, and, for operators who hold
// its own context, the admin API for what needs a key.
func (in *installation) buildSigner(ctx context.Context, run *errgroup.Group) (*front.Server, error) {
	c := in.cmd
	replica, err := in.replica()
	if err != nil {
		return nil, err
	}
	served, err := in.served()
	if err != nil {
		return nil, err
	}
	pdb, shared, err := in.providerStore(ctx)
	if err != nil {
		return nil, err
	}
	issuing, err := filekey.OpenVault(filepath.Join(c.Data, "issuing-key-encryption-key"), served)
	if err != nil {
		return nil, err
	}
	keys, err := c.Keystores.open(issuing)
	if err != nil {
		return nil, err
	}
	moved, err := provider.Reseal(ctx, pdb, shared, filekey.Store{Vault: issuing})
	if err != nil {
		return nil, err
	}
	if moved > 0 {
		in.log.Info("issuing keys are sealed by the signer's own key-encryption key now", "moved", moved)
	}
	statusURL, err := c.statusURL(in.url)
	if err != nil {
		return nil, err
	}
	births, err := in.once("birth-challenge-key", secret)
	if err != nil {
		return nil, err
	}
	if in.prov, err = provider.New(ctx, provider.Config{Store: pdb, Vault: shared, Keys: keys, BirthKey: births, Replica: replica, Region: c.Region, Origin: c.Host, Log: in.log, StatusURL: statusURL}); err != nil {
		return nil, err
	}
	if err := in.prov.Recover(ctx); err != nil {
		return nil, err
	}
	own, err := in.signerIdentity()
	if err != nil {
		return nil, err
	}
	fronts, err := in.frontEnds(own)
	if err != nil {
		return nil, err
	}
	// A token key of its own: front ends, which share the other one, make no tokens for the signer.
	tokens, err := in.once("signer-token-key", secret)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(c.Data, "context.json"), indent(admin.Context{URL: in.url,
		Anchors: string(own.CertificatePEM()), Token: adminserver.Token(tokens, "")}), 0o600); err != nil {
		return nil, err
	}
	in.watch.provider(in.prov)
	run.Go(func() error { return in.prov.Run(ctx) })
	run.Go(func() error { return in.responders(ctx) })
	adm := adminserver.New(adminserver.Config{Provider: in.prov, Key: tokens, OwnTokens: true, Log: in.log, Gate: in.gate, Count: in.watch.count(), Status: in.status,
		ServiceKey: func(context.Context, string) (string, error) {
			return "", cradle.Errorf(cradle.NotFound, "the signer has no service keys").WithHint("ask a front end")
		},
		Followed: func(context.Context, int64) (prov, hub *time.Time) { return nil, nil },
		Public:   adminserver.Public{URL: in.url, ESTHost: func(a cradle.AccountID) string { return estHost(c.Host, a) }}})
	door := &permit.Handler{Provider: in.prov, Log: in.log, PerSecond: c.PermitRate, Front: fronts}
	in.certs = http.NotFoundHandler()
	paths := front.Paths{{Pattern: "/signer/v1/", Handler: door}, {Pattern: "/admin/v1/", Handler: adm}}
	return front.New(front.Config{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &own.Certificate, nil }, Log: in.log, Grace: 3 * time.Second,
		Default: front.Route{HTTP: append(paths, in.watch.paths()...)}}), nil
}

// signerIdentity is the signer's TLS key and certificate, which front ends pin.
func (in *installation) signerIdentity() (*permit.Identity, error) {
	names := []string{permit.ServerName, in.cmd.Host, "localhost", "127.0.0.1", "::1"}
	if h, _, err := net.SplitHostPort(in.cmd.Listen); err == nil && !slices.Contains(names, h) {
		names = append(names, h)
	}
	b, err := in.once("signer.pem", func() ([]byte, error) {
		id, err := permit.NewIdentity("Cradle signer", names, time.Now())
		if err != nil {
			return nil, err
		}
		return id.PEM()
	})
	if err != nil {
		return nil, err
	}
	return permit.ParseIdentity(b)
}

// frontEnds writes the credential of each front end that has none, and returns who may bring permits: a front end
// is withdrawn by removing fronts/NAME.pem, at once.
func (in *installation) frontEnds(own *permit.Identity) (func(digest string) (string, bool), error) {
	dir := filepath.Join(in.cmd.Data, "fronts")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, name := range in.cmd.Front {
		if err := cradle.CheckID("front end", name); err != nil {
			return nil, err
		}
		cert := filepath.Join("fronts", name+".pem")
		b, err := in.once(cert, func() ([]byte, error) {
			id, err := permit.NewIdentity(name, nil, time.Now())
			if err != nil {
				return nil, err
			}
			cred, err := permit.Credential(id, own)
			if err == nil { // before the certificate: without it the credential is made again
				err = durable.WriteFile(filepath.Join(dir, name+".credential"), cred, 0o600)
			}
			return id.CertificatePEM(), err
		})
		if err != nil {
			return nil, err
		}
		digest, err := permit.DigestPEM(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cert, err)
		}
		names[digest] = name
	}
	return func(digest string) (string, bool) {
		name, ok := names[digest]
		if !ok {
			return "", false
		}
		_, err := os.Stat(filepath.Join(dir, name+".pem"))
		return name, err == nil
	}, nil
}

// responders keeps an OCSP responder of each CA made, which front ends answer by and cannot certify.
func (in *installation) responders(ctx context.Context) error {
	for {
		for _, iss := range in.prov.StatusIssuers() {
			if _, err := in.prov.OCSPKey(ctx, iss.ID); err != nil && ctx.Err() == nil && cradle.KindOf(err) != cradle.Busy {
				in.log.Error("OCSP responder", "authority", iss.ID, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}

// signerService is the signer apart in the status of a front end.
func (in *installation) signerService(ctx context.Context) []admin.Service {
	if in.signer == nil {
		return nil
	}
	s := admin.Service{Service: signerRole, URL: in.cmd.Signer}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := in.signer.Alive(ctx)
	if s.Healthy = err == nil; err != nil {
		s.Detail, _ = cradle.Public(err)
	}
	return []admin.Service{s}
}

// signerStatus is status of a signer.
func (in *installation) signerStatus(st admin.Status, prov admin.Service) admin.Status {
	prov.Service = signerRole
	prov.Detail = cmp.Or(prov.Detail, "holds the issuing keys; takes permits")
	st.ESTURL, st.Services, st.Hubs = "", []admin.Service{prov}, []string{}
	return st
}

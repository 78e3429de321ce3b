package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/archive"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/verbs"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// The files of a data folder that a backup is about.
const (
	keyFile    = "key-encryption-key"
	backupKind = "cradle-backup"
)

// databases are held in this order: what the first knew from the last, the last knows.
var databases = []string{"hub", "provisioning", "provider"}

// BackupAbout is what a backup says of itself.
type BackupAbout struct {
	Version string           `json:"version"` // of the program
	Made    time.Time        `json:"made_at"`
	Keys    bool             `json:"keys"`    // it holds the key-encryption key and other secrets
	Schemas map[string]int64 `json:"schemas"` // newest migration of each database
	Feed    int64            `json:"feed"`    // newest number of the status feed
	Logs    []BackupLog      `json:"logs"`
}

// BackupLog is a log as the backup has it.
type BackupLog struct {
	Log        string `json:"log"`
	Size       int64  `json:"size"`
	Checkpoint string `json:"checkpoint"` // the newest, a C2SP signed note
}

// BackupCmd copies an installation on SQLite into one file, while it serves or not.
type BackupCmd struct {
	Data     string `help:"Data folder of serve." default:"cradle-data" type:"path"`
	Out      string `help:"File to write, of mode 0600; it is not overwritten." required:"" placeholder:"FILE" type:"path"`
	WithKeys bool   `help:"Also put the key-encryption key, tokens and order keys into it: whoever has the file then has your CAs."`
}

// Run implements the verb.
func (c *BackupCmd) Run(ctx context.Context, out *cli.Out) error {
	if _, err := os.Stat(filepath.Join(c.Data, "provider.db")); err != nil {
		return cradle.Errorf(cradle.NotFound, "%s holds no database", c.Data).
			WithHint("name the data folder of serve with --data; on PostgreSQL use pg_dump (docs/operating/backup.md)")
	}
	tmp, err := os.MkdirTemp(filepath.Dir(c.Out), ".backup-*") // 0700
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err).WithHint("choose a file in a folder you may write to with --out")
	}
	defer os.RemoveAll(tmp)
	var copies []sqldb.Copy
	for _, name := range databases {
		copies = append(copies, sqldb.Copy{From: filepath.Join(c.Data, name+".db"), To: filepath.Join(tmp, name+".db")})
	}
	bar := progress{out: out}
	if err := sqldb.Snapshot(ctx, copies, bar.step("copying")); err != nil {
		return err
	}
	about := BackupAbout{Version: verbs.Version(), Made: time.Now().UTC(), Keys: c.WithKeys, Schemas: map[string]int64{}, Logs: []BackupLog{}}
	var files []archive.File
	for i, name := range databases {
		if about.Schemas[name], err = sqldb.SchemaVersion(ctx, copies[i].To); err != nil {
			return fmt.Errorf("reading the copy of %s: %w", name, err)
		}
		f, err := archive.Add(name+".db", copies[i].To)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	heads, feed, err := providerdb.Peek(ctx, filepath.Join(tmp, "provider.db"))
	if err != nil {
		return err
	}
	about.Feed = feed
	for _, h := range heads {
		about.Logs = append(about.Logs, BackupLog{h.Log, h.Size, string(h.Checkpoint)})
	}
	more, left, err := c.folder()
	if err != nil {
		return err
	}
	if err := archive.Write(c.Out, backupKind, about, append(files, more...), bar.step("writing")); err != nil {
		return err
	}
	bar.end()
	st, err := os.Stat(c.Out)
	if err != nil {
		return err
	}
	return out.Print(map[string]any{"file": c.Out, "bytes": st.Size(), "keys": c.WithKeys, "left_out": left, "about": about}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %d bytes, status feed at %d\n", c.Out, st.Size(), about.Feed)
		for _, l := range about.Logs {
			fmt.Fprintf(w, "  log %s: %d leaves\n", l.Log, l.Size)
		}
		if !c.WithKeys {
			fmt.Fprintf(w, "not in it, keep them apart: %s\n", strings.Join(left, ", "))
		}
	})
}

// folder finds what else of the data folder a backup needs. Secrets go along only when they were asked for.
func (c *BackupCmd) folder() (files []archive.File, left []string, err error) {
	left = []string{}
	add := func(name string, secret bool) error {
		if secret && !c.WithKeys {
			left = append(left, name)
			return nil
		}
		f, err := archive.Add(name, filepath.Join(c.Data, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	}
	if _, err := os.Stat(filepath.Join(c.Data, keyFile)); err == nil {
		if err := add(keyFile, true); err != nil {
			return nil, nil, err
		}
	}
	err = fs.WalkDir(os.DirFS(c.Data), "accounts", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return add(name, !onlyCertificates(filepath.Join(c.Data, filepath.FromSlash(name))))
	})
	slices.Sort(left)
	return files, left, err
}

// onlyCertificates tells files that hold nothing but certificates.
func onlyCertificates(path string) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(bytes.TrimSpace(b)); block == nil || block.Type != "CERTIFICATE" {
			return false
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return false
		}
		if b = bytes.TrimSpace(b); len(b) == 0 {
			return true
		}
	}
}

// progress writes how far a verb is to stderr, each tenth of the way, for people.
type progress struct {
	out   *cli.Out
	tenth int64
	wrote bool
}

func (p *progress) step(what string) func(done, total int64) {
	p.tenth = 0
	return func(done, total int64) {
		if p.out.JSON || total < 64<<20 {
			return
		}
		if t := done * 10 / total; t > p.tenth {
			p.tenth, p.wrote = t, true
			fmt.Fprintf(p.out.Err, "%s: %d %% of %d MB\n", what, t*10, total>>20)
		}
	}
}

func (p *progress) end() {
	if p.wrote {
		fmt.Fprintln(p.out.Err, "done")
	}
}

// RestoreCmd makes a data folder from a backup.
type RestoreCmd struct {
	File string `arg:"" help:"Backup." type:"existingfile"`
	Data string `help:"Data folder to make. It may hold the key-encryption-key and nothing else." required:"" type:"path" placeholder:"DIR"`
}

// Run checks the whole archive before anything gets its name. Crash: a folder DIR.restoring-… is left, and DIR as it was.
func (c *RestoreCmd) Run(ctx context.Context, out *cli.Out) error {
	have, err := os.ReadDir(c.Data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	keyThere := false
	for _, e := range have {
		if e.Name() != keyFile {
			return cradle.Errorf(cradle.Conflict, "%s is not empty: it holds %s", c.Data, e.Name()).WithHint("restore into a new folder, and look at what is in this one first")
		}
		keyThere = true
	}
	a, err := archive.Open[BackupAbout](c.File, backupKind)
	if err != nil {
		return err
	}
	defer a.Close()
	if keyThere && a.About.Keys {
		return cradle.Errorf(cradle.Conflict, "the backup holds a %s, and %s another", keyFile, c.Data).WithHint("restore into an empty folder")
	}
	parent := filepath.Dir(filepath.Clean(c.Data))
	if err := durable.MkdirAll(parent, 0o700); err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	tmp, err := os.MkdirTemp(parent, filepath.Base(c.Data)+".restoring-*")
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	defer os.RemoveAll(tmp)
	bar := progress{out: out}
	if err := a.Extract(tmp, bar.step("unpacking")); err != nil {
		return err
	}
	bar.end()
	for _, name := range databases {
		file := filepath.Join(tmp, name+".db")
		if err := sqldb.CheckFile(ctx, file); err != nil {
			return err
		}
	}
	if err := mark(ctx, tmp, ""); err != nil { // refuses a newer version's
		return err
	}
	if keyThere {
		b, err := os.ReadFile(filepath.Join(c.Data, keyFile))
		if err != nil {
			return err
		}
		if err := durable.WriteFile(filepath.Join(tmp, keyFile), b, 0o600); err != nil {
			return err
		}
		before := tmp + ".before"
		if err := os.Rename(c.Data, before); err != nil {
			return err
		}
		defer os.RemoveAll(before)
	} else if len(have) == 0 {
		if err := os.Remove(c.Data); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(tmp, c.Data); err != nil {
		return err
	}
	if err := durable.SyncDir(parent); err != nil {
		return err
	}
	needs := []string{}
	if _, err := os.Stat(filepath.Join(c.Data, keyFile)); err != nil {
		needs = append(needs, keyFile)
	}
	return out.Print(map[string]any{"data": c.Data, "about": a.About, "needs": needs}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: the backup of %s by %s; status feed at %d\n", c.Data, when(a.About.Made), a.About.Version, a.About.Feed)
		if len(needs) > 0 {
			fmt.Fprintf(w, "copy the %s into it, of mode 0600\n", keyFile)
		}
		fmt.Fprintf(w, "nothing is issued until it has caught up with what is known outside: cradle restore catch-up, or cradle restore declare-lost\n")
	})
}

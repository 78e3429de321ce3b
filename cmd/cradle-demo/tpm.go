package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
)

// TPMCmd makes one virtual TPM for a desk.
type TPMCmd struct {
	Dir  string `help:"Folder of the TPM and of its maker. Made if missing." required:"" placeholder:"DIR"`
	EK   string `help:"Endorsement key: p256, p384 or rsa2048." default:"p256" enum:"p256,p384,rsa2048"`
	Stop bool   `help:"Stop the TPM of this folder instead."`
}

// Run starts the TPM, which lives on when this command has ended. Run again on a folder it starts the same TPM.
func (c *TPMCmd) Run(ctx context.Context, out *cli.Out) error {
	dir := filepath.Join(c.Dir, "tpm")
	if c.Stop {
		if err := swtpm.Stop(dir); err != nil {
			return err
		}
		return out.Print(map[string]any{"tpm": swtpm.Socket(dir), "running": false},
			func(w io.Writer) { fmt.Fprintf(w, "the TPM in %s is stopped\n", dir) })
	}
	maker, err := tpmmaker.NewMaker(filepath.Join(c.Dir, "maker"))
	if err != nil {
		return writable(err)
	}
	bundle := filepath.Join(c.Dir, "maker.pem")
	if err := durable.WriteFile(bundle, maker.CABundle(), 0o644); err != nil {
		return writable(err)
	}
	tpm, err := swtpm.Start(ctx, dir, swtpm.Options{Detached: true})
	if err != nil {
		return err
	}
	_, err = maker.Manufacture(ctx, tpm.Socket(), tpmmaker.Options{EKType: tpmmaker.EKType(c.EK)})
	if err != nil && cradle.KindOf(err) != cradle.Conflict { // Conflict: it was made before
		_ = tpm.Stop()
		return err
	}
	v := struct {
		TPM     string `json:"tpm"`
		Maker   string `json:"maker"`
		PID     int    `json:"pid"`
		Running bool   `json:"running"`
	}{swtpm.Socket(dir), bundle, tpm.PID(), true}
	return out.Print(v, func(w io.Writer) {
		cli.Fields(w, "TPM", v.TPM, "its maker's CA certificates", v.Maker, "process", fmt.Sprint(v.PID))
		fmt.Fprintf(w, "A software TPM proves nothing about hardware: import its maker with --tier simulator.\n")
	})
}

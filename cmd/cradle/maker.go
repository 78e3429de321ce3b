package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// MakerImportCmd imports a TPM maker's CA certificates.
type MakerImportCmd struct {
	Operator
	File  string `arg:"" help:"CA certificates, roots and intermediates: PEM, or one in DER." type:"existingfile"`
	Maker string `help:"The maker's id, for example infineon." required:""`
	Tier  string `help:"What its TPMs are: discrete-tpm, firmware-tpm, virtual-tpm, simulator or software-key." required:""`
}

// Run implements the verb.
func (c *MakerImportCmd) Run(ctx context.Context, out *cli.Out) error {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	text := string(b)
	if bytes.HasPrefix(b, []byte{0x30}) {
		text = admin.PEM(b)
	}
	err = call(ctx, &c.Operator, out, http.MethodPost, "/tpm-makers", admin.ImportMaker{Maker: cradle.MakerID(c.Maker), Tier: cradle.Tier(c.Tier), PEM: text},
		func(w io.Writer, m *admin.Maker) {
			fmt.Fprintf(w, "maker %s, tier %s: %d certificates (%d roots, %d intermediates, %d alone), %d of them new\n",
				m.Maker, m.Tier, m.Certificates, m.Roots, m.Intermediates, m.Alone, m.Added)
			for _, i := range m.Imported {
				what := "intermediate"
				switch {
				case i.Root:
					what = "root"
				case i.Signer == "":
					what = "alone"
				}
				fmt.Fprintf(w, "  %s  %-12s  %s\n", i.Fingerprint, what, cli.Line(i.Subject))
			}
		})
	var e *cradle.Error
	if errors.As(err, &e) && e.Kind == cradle.Invalid { // which file is what the server does not know
		named := *e
		named.Detail = filepath.Base(c.File) + ": " + e.Detail
		return &named
	}
	return err
}

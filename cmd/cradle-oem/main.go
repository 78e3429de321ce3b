// Command cradle-oem is the device maker's station: it accepts orders, personalises units on the
// factory line and closes lots.
//
//	cradle-oem init --dir DIR                    once: keys; DIR/oem.pub goes to the provider
//	cradle-oem order accept FILE --dir DIR       countersign an order, get the station's certificate
//	cradle-oem order show ID --dir DIR           what this folder knows of an order
//	cradle-oem personalise --dir DIR --order ID --serial S --tpm PATH --unit DIR
//	                                             make one unit; any number may run at once
//	cradle-oem lot close --dir DIR --order ID --out DIR
//	                                             acceptance report and custody of all units since the last lot
//
// Every verb has --json. Exit status: 0 done, 1 refused or failed, 2 wrong usage. Errors are one line
// and a hint on stderr. Without --dir the folder is that of CRADLE_OEM_DIR, else ./oem.
package main

import (
	"context"
	"io"
	"os"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/verbs"
)

func main() {
	ctx, stop := cli.Context()
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return verbs.Program{
		Name:        "cradle-oem",
		Description: "The device maker's station: orders, units, lots.",
		Grammar:     new(grammar),
		Stdout:      stdout,
		Stderr:      stderr,
	}.Run(ctx, args)
}

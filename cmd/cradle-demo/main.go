// Command cradle-demo tells the story of Cradle on one machine: a credential provider, a device maker's
// line, TPM devices that power on, reach their hub, renew, and one that is revoked.
//
//	cradle-demo --devices 20 --dir demo            runs until Ctrl-C
//	cradle-demo --devices 200 --dir demo --exit    ends by itself: status 0 only if everything came true
//	cradle-demo tpm --dir DIR                      one virtual TPM to try things with; --stop ends it
//
// It runs the very commands that a user would run (cradle, cradle-oem, cradle-agent, which lie beside it)
// and prints each. Its own part is only what stands for the world around: a TPM maker, whose virtual TPMs are real
// swtpm processes, and somebody who switches the devices on and watches.
//
// With --exit it succeeds when every device was connected and its telemetry arrived, one device was revoked
// (its hub dropped it within 5 seconds, and EST, provisioning and hub refused it afterwards), every other
// device has renewed its certificate and went on sending, and all telemetry can be read back without a gap.
//
// Everything is in --dir, a folder of its own: the demo empties a folder that it made itself and refuses any
// other. No process outlives it, even when it is killed. Exit status: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"os"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/verbs"
)

type commands struct {
	verbs.Globals
	Run StoryCmd `cmd:"" default:"withargs" help:"Tell the whole story (default)."`
	TPM TPMCmd   `cmd:"" name:"tpm" help:"Make and start one virtual TPM with an EK certificate."`
}

func main() {
	ctx, stop := cli.Context()
	defer stop()
	os.Exit(verbs.Program{Name: "cradle-demo", Description: "Factory line to telemetry, on one machine.",
		Grammar: new(commands), Stdout: os.Stdout, Stderr: os.Stderr}.Run(ctx, os.Args[1:]))
}

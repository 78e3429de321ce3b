package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/cradle-iot/cradle/internal/cli"
)

// HubEventSourcesCmd shows or sets what a hub's event stream has beside telemetry.
type HubEventSourcesCmd struct {
	Operator
	Sources []string `arg:"" optional:"" help:"What it is to have from now on: twinChangeEvents, deviceLifecycleEvents, deviceConnectionStateEvents. Without any they are shown."`
	None    bool     `help:"Telemetry alone."`
	Hub     string   `help:"Hub." default:"hub-1"`
}

// Run implements the verb.
func (c *HubEventSourcesCmd) Run(ctx context.Context, out *cli.Out) error {
	if c.None && len(c.Sources) > 0 {
		return cli.Usagef("give sources, or --none")
	}
	r, err := c.registry(ctx, c.Hub)
	if err != nil {
		return err
	}
	var have []string
	if c.None || len(c.Sources) > 0 {
		have, err = r.SetEventSources(ctx, c.Sources)
	} else {
		have, err = r.EventSources(ctx)
	}
	if err != nil {
		return err
	}
	return out.Print(map[string]any{"hub": c.Hub, "sources": have}, func(w io.Writer) {
		fmt.Fprintf(w, "events of %s: %s\n", c.Hub, strings.Join(append([]string{"telemetry"}, have...), ", "))
	})
}

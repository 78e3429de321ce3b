package fleet_test

import (
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// A loaded fleet is like one that was onboarded: the auditor finds nothing wrong with it.
func TestLoadedFleetIsAudited(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if err := plant.Build(ctx, dir); err != nil {
		t.Fatal(err)
	}
	p, err := plant.New(ctx, "sqlite", dir, dir+"/plant", "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	const n = 1100 // two batches and a piece
	if err := fleet.Load(ctx, p, n); err != nil {
		t.Fatal(err)
	}
	if err := fleet.Load(ctx, p, 1); err == nil {
		t.Error("a device is loaded twice")
	}
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	export := p.Path("log.export")
	if out, err := p.Run(ctx, "cradle", "audit", "export", "--account", string(plant.Account), "--out", export, "--data", p.Data()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := p.Run(ctx, "cradle", "audit", "verify", export, "--json")
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, out)
	}
	if !strings.Contains(out, `"devices":1100`) && !strings.Contains(out, `"devices": 1100`) {
		t.Errorf("the auditor counts otherwise: %s", out)
	}
}

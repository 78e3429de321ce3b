package provider

import (
	"context"

	"github.com/cradle-iot/cradle/provider/ledger"
)

type actorKey struct{}

// WithActor returns a context whose calls are made in the name of somebody, for example "operator alice": the
// leaves of what they change say so. The caller has authenticated that name.
func WithActor(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, actorKey{}, name)
}

// leafBy is leaf for what an operator or builder does: it says in whose name ctx acts. Devices and lines have no
// name in their context: their leaves hold what authenticated them.
func (p *Provider) leafBy(ctx context.Context, log string, kind ledger.Kind, body map[string]any) (ledger.Leaf, error) {
	if name, ok := ctx.Value(actorKey{}).(string); ok && name != "" {
		body["by"] = name
	}
	return p.leaf(log, kind, body)
}

// operatorLeaf is the entry of an act of an operator that has no kind of its own: action is the verb
// without its program, for example "tpm-maker import".
func (p *Provider) operatorLeaf(ctx context.Context, log, action string, body map[string]any) (ledger.Leaf, error) {
	body["action"] = action
	return p.leafBy(ctx, log, ledger.KindOperator, body)
}

func actorOf(ctx context.Context) string {
	name, _ := ctx.Value(actorKey{}).(string)
	return name
}

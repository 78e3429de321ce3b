package allocate

import (
	"context"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/cradle-iot/cradle"
)

// Bounds of an expression.
const (
	MaxExpression = 4096                  // bytes of source
	maxCost       = 20_000                // steps of one evaluation, in CEL's units
	maxDepth      = 32                    // of nesting
	maxAnswer     = 16                    // preferences that are looked at
	evalTimeout   = 20 * time.Millisecond // beside the cost, should a step be dearer than CEL reckons
)

// Facts are what an expression may ask about a device. All but Payload come from what was proved when the device
// authenticated, or from the enrolment; empty means that nothing is known.
type Facts struct {
	RegistrationID string
	Account        string
	Enrolment      string // id of the enrolment or group
	Attestation    string // x509, symmetricKey or tpm
	Order          string // of the group that admitted the device by its order
	Lot            string
	Tier           string // from the certificate's policy OID
	Proved         bool   // the certificate says that its key was proved in a TPM
	TPMMaker       string
	EKType         string
	Region         string
	CurrentHub     string
	Hubs           []string // that may be the answer
	Payload        any      // as the device sent it: decoded JSON, attested by nobody
}

// Expression is a compiled CEL expression that names a hub, or several in order of preference. It is safe for
// concurrent use.
//
// It sees registration_id, account, enrollment, attestation, order, lot, tier, proved, tpm_maker, ek_type, region,
// current_hub, hubs, and untrusted.payload, what the device itself says.
type Expression struct{ program cel.Program }

var environment = func() *cel.Env {
	var options []cel.EnvOption
	for _, name := range []string{"registration_id", "account", "enrollment", "attestation", "order", "lot", "tier", "tpm_maker", "ek_type", "region", "current_hub"} {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	options = append(options, cel.Variable("proved", cel.BoolType), cel.Variable("hubs", cel.ListType(cel.StringType)),
		cel.Variable("untrusted", cel.MapType(cel.StringType, cel.DynType)),
		cel.ParserRecursionLimit(maxDepth), cel.ParserExpressionSizeLimit(MaxExpression))
	env, err := cel.NewEnv(options...)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return env
}()

// Compile checks an expression. An error is Invalid and says where in the source it is wrong.
func Compile(source string) (*Expression, error) {
	if strings.TrimSpace(source) == "" || len(source) > MaxExpression {
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression must have 1 to %d bytes, not %d", MaxExpression, len(source))
	}
	ast, issues := environment.Compile(source)
	if err := issues.Err(); err != nil {
		where, message := "", err.Error()
		if all := issues.Errors(); len(all) > 0 {
			where = fmt.Sprintf("line %d, column %d: ", all[0].Location.Line(), all[0].Location.Column()+1)
			message = all[0].Message
		}
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression is wrong: %s%.300s", where, message).
			WithHint("variables: registration_id, account, enrollment, attestation, order, lot, tier, proved, tpm_maker, ek_type, region, current_hub, hubs, untrusted.payload")
	}
	switch t := ast.OutputType(); {
	case t.IsExactType(cel.StringType), t.IsExactType(cel.DynType), t.IsExactType(cel.ListType(cel.StringType)), t.IsExactType(cel.ListType(cel.DynType)):
	default:
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression gives %s", t).WithHint("it must give a hub's name, or a list of names")
	}
	program, err := environment.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(64), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression: %v", err)
	}
	return &Expression{program}, nil
}

// Evaluate returns the names that the expression gives, best first. An error is Invalid: the expression stumbled over
// these facts, gave something else than names, or was too dear.
func (e *Expression) Evaluate(ctx context.Context, f Facts) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, evalTimeout)
	defer cancel()
	out, _, err := e.program.ContextEval(ctx, map[string]any{
		"registration_id": f.RegistrationID, "account": f.Account, "enrollment": f.Enrolment, "attestation": f.Attestation,
		"order": f.Order, "lot": f.Lot, "tier": f.Tier, "proved": f.Proved, "tpm_maker": f.TPMMaker, "ek_type": f.EKType,
		"region": f.Region, "current_hub": f.CurrentHub, "hubs": f.Hubs, "untrusted": map[string]any{"payload": f.Payload},
	})
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression: %.300v", err)
	}
	return names(out)
}

func names(v ref.Val) ([]string, error) {
	wrong := func(v ref.Val) ([]string, error) {
		return nil, cradle.Errorf(cradle.Invalid, "allocation expression gave a value of type %s, not a hub's name or a list of them", v.Type().TypeName())
	}
	switch v := v.(type) {
	case types.String:
		return []string{string(v)}, nil
	case traits.Lister:
		var out []string
		for it := v.Iterator(); it.HasNext() == types.True && len(out) < maxAnswer; {
			item := it.Next()
			s, ok := item.(types.String)
			if !ok {
				return wrong(item)
			}
			out = append(out, string(s))
		}
		return out, nil
	}
	return wrong(v)
}

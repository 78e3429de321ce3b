package provider_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// TestOperators goes through an operator's life on two replicas of one store.
func TestOperators(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		second := r.replica(r.db)
		ctx := provider.WithActor(t.Context(), "operator")
		expires := r.now().Add(time.Hour)
		token, made, err := r.p.AddOperator(ctx, provider.Operator{Account: "acme", Name: "alice", Role: admin.Operator, Expires: expires})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(token, string(made.Hash)) || len(made.Hash) != 32 {
			t.Errorf("hash %x", made.Hash)
		}
		for _, p := range []*provider.Provider{r.p, second} {
			o, err := p.Authenticate(t.Context(), token)
			if err != nil || o.Name != "alice" || o.Account != "acme" || o.Role != admin.Operator {
				t.Fatalf("%+v, %v", o, err)
			}
		}
		list, err := second.OperatorList(t.Context())
		if err != nil || len(list) != 1 || list[0].LastUsed.IsZero() || list[0].Expires.Sub(expires).Abs() > time.Millisecond {
			t.Fatalf("list: %+v, %v", list, err)
		}
		// A name belongs to its account.
		if _, _, err := r.p.AddOperator(ctx, provider.Operator{Account: "acme", Name: "alice", Role: admin.Auditor}); cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("the same name again: %v", err)
		}
		other, _, err := r.p.AddOperator(ctx, provider.Operator{Name: "alice", Role: admin.Auditor})
		if err != nil {
			t.Errorf("the installation's alice: %v", err)
		}
		// Removed at one replica is refused at the other at once, and its namesake is not touched.
		if err := second.RemoveOperator(ctx, "acme", "alice"); err != nil {
			t.Fatal(err)
		}
		_, err = r.p.Authenticate(t.Context(), token)
		refused(t, err, cradle.Unauthorized, "missing or wrong")
		if o, err := r.p.Authenticate(t.Context(), other); err != nil || o.Account != "" {
			t.Errorf("the namesake: %+v, %v", o, err)
		}
		refused(t, r.p.RemoveOperator(ctx, "acme", "alice"), cradle.NotFound, "alice")
		// Nobody takes an account's operator for removed because the account was left out.
		if _, _, err := r.p.AddOperator(ctx, provider.Operator{Account: "acme", Name: "bob", Role: admin.Auditor}); err != nil {
			t.Fatal(err)
		}
		refused(t, r.p.RemoveOperator(ctx, "", "bob"), cradle.NotFound, "account acme has one")
		if err := r.p.RemoveOperator(ctx, "acme", "bob"); err != nil {
			t.Fatal(err)
		}
		// A new token for the same name does not revive the old one.
		again, _, err := r.p.AddOperator(ctx, provider.Operator{Account: "acme", Name: "alice", Role: admin.Operator, Expires: expires})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.p.Authenticate(t.Context(), token)
		refused(t, err, cradle.Unauthorized, "missing or wrong")
		r.advance(2 * time.Hour)
		_, err = r.p.Authenticate(t.Context(), again)
		refused(t, err, cradle.Unauthorized, "expired")
		r.check()
		if log := string(r.export()); strings.Count(log, "operator add") != 3 || strings.Count(log, "operator remove") != 2 {
			t.Errorf("the account's log has %d additions and %d removals", strings.Count(log, "operator add"), strings.Count(log, "operator remove"))
		}
	})
}

// TestOperatorTokensForged: every part of a token counts.
func TestOperatorTokensForged(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		token, _, err := r.p.AddOperator(t.Context(), provider.Operator{Name: "alice", Role: admin.Owner})
		if err != nil {
			t.Fatal(err)
		}
		second, _, err := r.p.AddOperator(t.Context(), provider.Operator{Name: "bob", Role: admin.Auditor})
		if err != nil {
			t.Fatal(err)
		}
		id, secret, _ := strings.Cut(strings.TrimPrefix(token, "cradle2."), ".")
		_, secret2, _ := strings.Cut(strings.TrimPrefix(second, "cradle2."), ".")
		zero := strings.Repeat("A", 43)
		for name, tok := range map[string]string{
			"nothing": "", "id alone": "cradle2." + id, "no secret": "cradle2." + id + ".", "another's secret": "cradle2." + id + "." + secret2, "zero secret": "cradle2." + id + "." + zero,
			"unknown id": "cradle2.AAAAAAAAAAAA." + secret, "cut": token[:len(token)-1], "longer": token + "A", "other version": "cradle3." + id + "." + secret,
			"last bits changed": token[:len(token)-1] + string(map[bool]rune{true: 'B', false: 'A'}[token[len(token)-1] == 'A']), "raw bytes": "cradle2.\xff\x00234567890a." + secret, "wildcard": "cradle2.%%%%%%%%%%%%." + secret,
			"upper-case id": "cradle2." + strings.ToUpper(id) + "x"[:0] + "." + strings.ToUpper(secret), "spaces": " " + token,
		} {
			if tok == token {
				continue
			}
			if o, err := r.p.Authenticate(t.Context(), tok); cradle.KindOf(err) != cradle.Unauthorized {
				t.Errorf("%s: %+v, %v", name, o, err)
			}
		}
		if _, err := r.p.Authenticate(t.Context(), token); err != nil {
			t.Error(err)
		}
	})
}

func TestOperatorsRefused(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	for name, c := range map[string]struct {
		o    provider.Operator
		kind cradle.Kind
		part string
	}{
		"no name":            {provider.Operator{Role: admin.Owner}, cradle.Invalid, "operator"},
		"bad name":           {provider.Operator{Name: "Alice Smith", Role: admin.Owner}, cradle.Invalid, "Alice"},
		"no role":            {provider.Operator{Name: "alice"}, cradle.Invalid, "role"},
		"unknown role":       {provider.Operator{Name: "alice", Role: "root"}, cradle.Invalid, "root"},
		"expired":            {provider.Operator{Name: "alice", Role: admin.Owner, Expires: r.now().Add(-time.Second)}, cradle.Invalid, "past"},
		"no such account":    {provider.Operator{Name: "alice", Role: admin.Owner, Account: "nobody"}, cradle.NotFound, "nobody"},
		"line of no account": {provider.Operator{Name: "alice", Role: admin.Line}, cradle.Invalid, "account"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := r.p.AddOperator(t.Context(), c.o)
			refused(t, err, c.kind, c.part)
		})
	}
	if list, err := r.p.OperatorList(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestOperatorPlanted: who writes the store can neither make an operator nor change what one may.
func TestOperatorPlanted(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		token, o, err := r.p.AddOperator(t.Context(), provider.Operator{Account: "acme", Name: "alice", Role: admin.Auditor, Expires: r.now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ledger.NewLeaf("acme", ledger.KindOperator, r.now(), map[string]any{})
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*provider.Operator){
			"role":         func(o *provider.Operator) { o.Role = admin.Owner },
			"account":      func(o *provider.Operator) { o.Account = "" },
			"name":         func(o *provider.Operator) { o.Name = "bob" },
			"end":          func(o *provider.Operator) { o.Expires = o.Expires.Add(time.Hour) },
			"no end":       func(o *provider.Operator) { o.Expires = time.Time{} },
			"hash of mine": func(o *provider.Operator) { o.Hash = bytes.Repeat([]byte{1}, 32) },
			"no hash":      func(o *provider.Operator) { o.Hash = []byte{} },
		} {
			if err := r.db.RemoveOperator(t.Context(), o.Account, o.Name, leaf); err != nil {
				t.Fatal(err)
			}
			planted := o
			change(&planted)
			if err := r.db.AddOperator(t.Context(), planted, leaf); err != nil {
				t.Fatal(err)
			}
			if got, err := r.p.Authenticate(t.Context(), token); cradle.KindOf(err) != cradle.Unauthorized {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			if err := r.db.RemoveOperator(t.Context(), planted.Account, planted.Name, leaf); err != nil {
				t.Fatal(err)
			}
			if err := r.db.AddOperator(t.Context(), o, leaf); err != nil {
				t.Fatal(err)
			}
			if _, err := r.p.Authenticate(t.Context(), token); err != nil {
				t.Errorf("as it was: %v", err)
			}
		}
	})
}

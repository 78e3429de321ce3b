package provider

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Operator is somebody who may call the admin API with a token of his own.
type Operator struct {
	Account  cradle.AccountID // empty: of the whole installation
	Name     string
	Role     admin.Role
	ID       string // names the token; not secret
	Hash     []byte // MAC over all above, Expires and the token's secret, which is kept nowhere
	Created  time.Time
	Expires  time.Time // zero: never
	LastUsed time.Time // within usedPrecision
}

// Operators keeps operators. Every request reads its operator, so that one who was removed is refused by all
// replicas from the next request on.
type Operators interface {
	// AddOperator fails with Conflict when the account has an operator of that name.
	AddOperator(ctx context.Context, o Operator, leaf ledger.Leaf) error
	RemoveOperator(ctx context.Context, account cradle.AccountID, name string, leaf ledger.Leaf) error // NotFound
	OperatorByToken(ctx context.Context, id string) (Operator, error)                                  // NotFound
	OperatorList(ctx context.Context) ([]Operator, error)                                              // by account and name
	// UsedOperator notes when a token was used; one that is gone is no error.
	UsedOperator(ctx context.Context, id string, at time.Time) error
}

const (
	operatorToken = "cradle2." // then ID "." secret, both base64url
	usedPrecision = time.Minute
)

// AddOperator makes an operator and returns his token, which cannot be had again.
func (p *Provider) AddOperator(ctx context.Context, o Operator) (string, Operator, error) {
	if err := cradle.CheckID("operator", o.Name); err != nil {
		return "", o, err
	}
	if !slices.Contains(admin.Roles, o.Role) {
		return "", o, cradle.Errorf(cradle.Invalid, "unknown role %q: use one of %v", o.Role, admin.Roles)
	}
	o.Created = p.now()
	if !o.Expires.IsZero() && !o.Expires.After(o.Created) {
		return "", o, cradle.Errorf(cradle.Invalid, "the token would expire at %s, which is past", o.Expires.UTC().Format(time.RFC3339))
	}
	if o.Account == "" && o.Role == admin.Line {
		return "", o, cradle.Errorf(cradle.Invalid, "the role %s is given by an account, to a maker of its devices", o.Role).WithHint("name the account with --account")
	}
	log := InstallationLog
	if o.Account != "" {
		if _, err := p.account(ctx, o.Account); err != nil {
			return "", o, err
		}
		log = string(o.Account)
	}
	id, secret := make([]byte, 9), make([]byte, 32)
	rand.Read(id)
	rand.Read(secret)
	o.ID = base64.RawURLEncoding.EncodeToString(id)
	o.Hash = p.operatorMAC(o, secret)
	body := map[string]any{"account": o.Account, "name": o.Name, "role": o.Role, "token": o.ID, "settings": settings(o.Setting())}
	if !o.Expires.IsZero() {
		body["expires"] = o.Expires.UTC()
	}
	leaf, err := p.operatorLeaf(ctx, log, "operator add", body)
	if err != nil {
		return "", o, err
	}
	if err := p.store.AddOperator(ctx, o, leaf); err != nil {
		return "", o, err
	}
	return operatorToken + o.ID + "." + base64.RawURLEncoding.EncodeToString(secret), o, nil
}

// operatorMAC binds the row to the token, under a key that is not in the store: who writes the store can neither
// plant an operator whose token he knows, nor give one another role, account or end.
func (p *Provider) operatorMAC(o Operator, secret []byte) []byte {
	m := hmac.New(sha256.New, p.operatorKey)
	expires := int64(0)
	if !o.Expires.IsZero() {
		expires = o.Expires.UnixMicro()
	}
	fmt.Fprintf(m, "cradle-operator-v1\n%q %q %q %q %d\n", o.Account, o.Name, o.Role, o.ID, expires)
	m.Write(secret)
	return m.Sum(nil)
}

// RemoveOperator ends an operator's token: no replica takes it from now on.
func (p *Provider) RemoveOperator(ctx context.Context, account cradle.AccountID, name string) error {
	log := InstallationLog
	if account != "" {
		if _, err := p.account(ctx, account); err != nil {
			return err
		}
		log = string(account)
	}
	leaf, err := p.operatorLeaf(ctx, log, "operator remove", map[string]any{"account": account, "name": name, "settings": settings(gone(operatorSetting(name)))})
	if err != nil {
		return err
	}
	err = p.store.RemoveOperator(ctx, account, name, leaf)
	if cradle.KindOf(err) != cradle.NotFound || account != "" {
		return err
	}
	all, lerr := p.store.OperatorList(ctx)
	for _, o := range all {
		if lerr == nil && o.Name == name { // that token works on: say so
			return cradle.Errorf(cradle.NotFound, "no operator %q of the installation; account %s has one", name, o.Account).WithHint("add --account %s", o.Account)
		}
	}
	return err
}

// OperatorList returns every operator of the installation and its accounts.
func (p *Provider) OperatorList(ctx context.Context) ([]Operator, error) {
	return p.store.OperatorList(ctx)
}

// Authenticate finds the operator of a token: Unauthorized when there is none, or no longer.
func (p *Provider) Authenticate(ctx context.Context, token string) (Operator, error) {
	refuse := cradle.Errorf(cradle.Unauthorized, "the token is missing or wrong").WithHint("use the context.json that was written for you, with --context")
	rest, ok := strings.CutPrefix(token, operatorToken)
	id, text, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || len(id) != 12 || len(text) != 43 {
		return Operator{}, refuse
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Operator{}, refuse
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(id); err != nil {
		return Operator{}, refuse
	}
	o, err := p.store.OperatorByToken(ctx, id)
	if cradle.KindOf(err) == cradle.NotFound {
		return Operator{}, refuse
	}
	if err != nil {
		return Operator{}, err
	}
	if !hmac.Equal(o.Hash, p.operatorMAC(o, secret)) {
		return Operator{}, refuse
	}
	now := p.now()
	if !o.Expires.IsZero() && !now.Before(o.Expires) {
		return Operator{}, cradle.Errorf(cradle.Unauthorized, "the token expired at %s", o.Expires.UTC().Format(time.RFC3339)).
			WithHint("ask an owner for a new one: cradle operator remove %s, then add", o.Name)
	}
	if now.Sub(o.LastUsed) >= usedPrecision {
		if err := p.store.UsedOperator(ctx, o.ID, now); err != nil {
			p.log.Warn("noting the use of a token", "operator", o.Name, "err", err) // no reason to refuse it
		}
	}
	return o, nil
}

package provider

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Profiles are what the certificates of an account hold.
type Profiles map[cradle.Profile]ca.Profile

// ProfileChange replaces the stored text of a profile.
type ProfileChange struct {
	Profile  cradle.Profile
	Old, New string // TOML; Old is empty for a new profile
}

// ProfileStore keeps profiles beside their accounts.
type ProfileStore interface {
	// SetProfiles stores the changes, if each profile still has its old text; else Conflict, and nothing is stored.
	SetProfiles(ctx context.Context, account cradle.AccountID, changes []ProfileChange, leaf ledger.Leaf) error
}

// complete fills in the built-in profiles and all defaults, and checks the set.
func (pr Profiles) complete() (Profiles, error) {
	out := Profiles{}
	for _, name := range ca.BuiltIn {
		out[name] = ca.Profile{}
	}
	maps.Copy(out, pr)
	first := cradle.Profile("")
	for _, name := range slices.Sorted(maps.Keys(out)) {
		c, err := out[name].Complete(name)
		if err != nil {
			return nil, err
		}
		if c.Default && first != "" {
			return nil, cradle.Errorf(cradle.Invalid, "profiles %s and %s: default: only one can be", first, name)
		}
		if c.Default {
			first = name
		}
		out[name] = c
	}
	return out, nil
}

// texts is the set as it is stored.
func (pr Profiles) texts() map[cradle.Profile]string {
	out := map[cradle.Profile]string{}
	for name, p := range pr {
		out[name] = p.String()
	}
	return out
}

func (pr Profiles) digests() map[cradle.Profile]string {
	out := map[cradle.Profile]string{}
	for name, p := range pr {
		out[name] = p.Digest()
	}
	return out
}

// byDefault is the profile of the account's host name without a label.
func (pr Profiles) byDefault() cradle.Profile {
	for name, p := range pr {
		if p.Default {
			return name
		}
	}
	return cradle.Operational
}

// readProfiles parses the profiles of an account; those whose text did not change are taken from old. A
// profile that cannot be read, because a newer replica wrote it, is left out: nothing is issued under it here.
func (p *Provider) readProfiles(a *Account, old *directory) Profiles {
	out := Profiles{}
	for name, text := range a.Profiles {
		if old != nil && old.accounts[a.ID] != nil && old.accounts[a.ID].Profiles[name] == text {
			if same, ok := old.profiles[a.ID][name]; ok {
				out[name] = same
				continue
			}
		}
		pr, err := ca.ParseProfile(name, text)
		if err != nil {
			p.log.Error("a stored profile cannot be read here", "account", a.ID, "profile", name, "err", err)
			continue
		}
		out[name] = pr
	}
	for _, name := range ca.BuiltIn {
		if _, ok := a.Profiles[name]; !ok {
			out[name] = ca.DefaultProfile(name)
		}
	}
	return out
}

// profile returns a profile of an account; NotFound when there is none.
func (p *Provider) profile(account cradle.AccountID, name cradle.Profile) (*ca.Profile, error) {
	if pr, ok := p.dir.Load().profiles[account][name]; ok {
		return &pr, nil
	}
	return nil, cradle.Errorf(cradle.NotFound, "account %q has no profile %q", account, name).WithHint("cradle account show %s", account)
}

// kindOf is the kind of a profile; empty for a station's, and for one that is not known.
func (p *Provider) kindOf(account cradle.AccountID, name cradle.Profile) ca.Kind {
	return p.dir.Load().profiles[account][name].Kind
}

// issuerKinds are the CAs that sign each kind of certificate when its key is proved.
var issuerKinds = map[ca.Kind]AuthorityKind{ca.KindIDevID: IDevIDCA, ca.KindIAK: IDevIDCA, ca.KindLDevID: OnboardingCA,
	ca.KindOperational: OperationalCA, ca.KindClient: OperationalCA}

// Profiles returns the profiles of an account.
func (p *Provider) Profiles(ctx context.Context, account cradle.AccountID) (Profiles, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return maps.Clone(p.dir.Load().profiles[account]), nil
}

// Endpoint finds what a label stands for: "<account>-<profile>", where the profile has no '-'. One that another replica made a
// moment ago is found too, at most a second later.
func (p *Provider) Endpoint(ctx context.Context, label string) (Endpoint, error) {
	if i := strings.LastIndexByte(label, '-'); i > 0 {
		account, name := cradle.AccountID(label[:i]), cradle.Profile(label[i+1:])
		for again := true; again; {
			if _, ok := p.dir.Load().profiles[account][name]; ok {
				return Endpoint{account, name, label}, nil
			}
			var err error
			if again, err = p.reread(ctx); err != nil {
				return Endpoint{}, err
			}
		}
	}
	return Endpoint{}, cradle.Errorf(cradle.NotFound, "no such EST label %q", label).
		WithHint("labels are <account>-<profile>; cradle account show lists them")
}

// DefaultEndpoint is what an account's own host name stands for without a label.
func (p *Provider) DefaultEndpoint(ctx context.Context, account cradle.AccountID) (Endpoint, error) {
	for p.dir.Load().accounts[account] == nil {
		if again, err := p.reread(ctx); err != nil {
			return Endpoint{}, err
		} else if !again {
			return Endpoint{}, cradle.Errorf(cradle.NotFound, "no account %q", account)
		}
	}
	name := p.dir.Load().profiles[account].byDefault()
	return Endpoint{account, name, cradle.Label(account, name)}, nil
}

// POPLinking reports whether a CSR at the endpoint must be bound to its TLS connection (RFC 7030 §3.5).
func (p *Provider) POPLinking(e Endpoint) bool {
	return p.dir.Load().profiles[e.Account][e.Profile].POPLinking
}

// NeedsEvidence reports whether every CSR at the endpoint must carry evidence.
func (p *Provider) NeedsEvidence(e Endpoint) bool {
	return !p.unprovedHere(e)
}

// ProfileDiff is one field of a profile that a change sets.
type ProfileDiff struct {
	Profile  cradle.Profile
	Field    string
	Old, New string // empty: the field had, or has, none
}

// SetProfiles makes the profiles of an account what set says, and leaves those that set does not name as they are. A
// field that set leaves out has its default. It is effective at every replica within seconds, and returns what
// changed. With dry set it changes nothing.
func (p *Provider) SetProfiles(ctx context.Context, account cradle.AccountID, set Profiles, dry bool) ([]ProfileDiff, error) {
	if err := p.reload(ctx); err != nil {
		return nil, err
	}
	a, err := p.account(ctx, account)
	if err != nil {
		return nil, err
	}
	old := p.dir.Load().profiles[account]
	all := maps.Clone(old)
	maps.Copy(all, set)
	if all, err = all.complete(); err != nil {
		return nil, err
	}
	var changes []ProfileChange
	var diffs []ProfileDiff
	log := map[cradle.Profile]any{}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		was, existed := old[name]
		if existed && was.Kind != all[name].Kind {
			return nil, cradle.Errorf(cradle.Conflict, "profile %s: kind: it is %s and cannot change", name, was.Kind).WithHint("make another profile, and close this one")
		}
		c := ProfileChange{Profile: name, Old: a.Profiles[name], New: all[name].String()}
		if c.Old == c.New {
			continue
		}
		before, digest := "", ""
		if existed {
			before, digest = was.String(), was.Digest()
		}
		d := diffProfile(name, before, c.New)
		if len(d) == 0 && existed {
			continue
		}
		changes, diffs = append(changes, c), append(diffs, d...)
		log[name] = map[string]string{"old": digest, "new": all[name].Digest()}
	}
	if len(changes) == 0 || dry {
		return diffs, nil
	}
	leaf, err := p.leafBy(ctx, string(account), ledger.KindOperator, map[string]any{"action": "profile set", "account": account, "profiles": log})
	if err != nil {
		return nil, err
	}
	if err := p.store.SetProfiles(ctx, account, changes, leaf); err != nil {
		return nil, err
	}
	return diffs, p.reload(ctx)
}

// diffProfile compares the TOML of two profiles line by line: each line is one field, under the table before it.
func diffProfile(name cradle.Profile, old, new string) []ProfileDiff {
	a, order := fieldsOf(old)
	b, more := fieldsOf(new)
	var out []ProfileDiff
	for _, k := range append(order, more...) {
		if a[k] != b[k] {
			out = append(out, ProfileDiff{Profile: name, Field: k, Old: a[k], New: b[k]})
			delete(a, k)
			delete(b, k)
		}
	}
	return out
}

func fieldsOf(text string) (map[string]string, []string) {
	out := map[string]string{}
	var order []string
	table, count := "", map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if t, ok := strings.CutPrefix(line, "[["); ok {
			t = strings.TrimSuffix(t, "]]")
			table = fmt.Sprintf("%s %d ", t, count[t]+1)
			count[t]++
			continue
		}
		if t, ok := strings.CutPrefix(line, "["); ok {
			table = strings.TrimSuffix(t, "]") + "."
			continue
		}
		if k, v, ok := strings.Cut(line, " = "); ok {
			out[table+k] = v
			order = append(order, table+k)
		}
	}
	return out, order
}

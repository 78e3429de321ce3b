package attest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
)

// row is one attack, built for real: keys, certificates and signatures exist, and verify judges them
// again each time it is called. Honest rows have no code.
type row struct {
	name   string
	code   attest.Code   // the reason that must be given
	also   []attest.Code // what else must be given, when the attack breaks several rules at once
	held   string        // why the attack is still refused when its check is deleted: a second line of defence
	verify func() attest.Reasons
}

func allRows(t testing.TB) []row {
	return slices.Concat(ekRows(t), pathRows(t), akRows(t), csrRows(t), keyRows(t), tpmRows(t), popRows(t), clientRows(t))
}

// TestAttacks: each attack is refused for its own reason and no other; the honest rows pass.
func TestAttacks(t *testing.T) {
	rows := allRows(t)
	attacks := 0
	names := map[string]bool{}
	for _, r := range rows {
		if names[r.name] {
			t.Errorf("two rows are called %q", r.name)
		}
		names[r.name] = true
		got := codes(r.verify())
		var want []attest.Code
		if r.code != "" {
			attacks++
			want = append([]attest.Code{r.code}, r.also...)
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got reasons %q, want %q: %v", r.name, got, want, r.verify())
		}
	}
	if attacks < 40 {
		t.Errorf("%d attacks; at least 40 are wanted", attacks)
	}
	t.Logf("%d attacks, %d honest rows", attacks, len(rows)-attacks)
}

// TestDeletedCheck deletes the checks one by one. The attacks of the deleted check, and no others, now
// pass; those with another defence behind it are named as such.
func TestDeletedCheck(t *testing.T) {
	rows := allRows(t)
	for _, check := range registered {
		restore := attest.Without(check)
		bites := 0
		for _, r := range rows {
			ok := r.verify().OK()
			mine := r.code != "" && about(r.code) == check
			switch {
			case r.code == "" && !ok:
				t.Errorf("without %s: honest row %q is refused", check, r.name)
			case r.code == "":
			case mine && len(r.also) == 0 && r.held == "":
				bites++
				if !ok {
					t.Errorf("without %s: %q is still refused: %v", check, r.name, r.verify())
				}
			case ok:
				t.Errorf("without %s: %q passes", check, r.name)
			case mine:
				bites += len(r.held)
			}
		}
		restore()
		if bites == 0 {
			t.Errorf("no attack shows that %s is needed", check)
		}
	}
	for _, r := range rows {
		if r.verify().OK() != (r.code == "") {
			t.Fatalf("%s: checks were not restored", r.name)
		}
	}
}

// TestEveryCodeHasAnAttack, those of decoding too, which are no deletable checks.
func TestEveryCodeHasAnAttack(t *testing.T) {
	shown := map[attest.Code]bool{}
	for _, r := range allRows(t) {
		shown[r.code] = true
	}
	for _, c := range []attest.Code{attest.EKMalformed, attest.EKSerial, attest.EKOversize, attest.EKUntrusted, attest.AKMalformed,
		attest.KeyMalformed, attest.EvidenceMissing, attest.AttestMalformed, attest.SignatureMalformed, attest.EKPubMalformed,
		attest.ClientMissing, attest.ClientOversize, attest.ClientUntrusted, attest.ClientPath} {
		if !shown[c] {
			t.Errorf("no attack for %s", c)
		}
	}
}

// TestErr: the refusal that goes to the device names the code, and a hint where there is one.
func TestErr(t *testing.T) {
	if err := (attest.Reasons)(nil).Err(); err != nil {
		t.Errorf("no reasons: got %v", err)
	}
	err := attest.Reasons{{Code: attest.EKROCA, Detail: "weak"}, {Code: attest.EKIsCA, Detail: "CA"}}.Err()
	detail, hint := cradle.Public(err)
	if cradle.KindOf(err) != cradle.Forbidden || detail != "evidence refused: ek-roca: weak; ek-is-ca: CA" || !strings.Contains(hint, "CVE-2017-15361") {
		t.Errorf("got %v %q %q", cradle.KindOf(err), detail, hint)
	}
}

var registered = attest.Registered() // before any is removed

func codes(why attest.Reasons) []attest.Code {
	var out []attest.Code
	for _, r := range why {
		out = append(out, r.Code)
	}
	slices.Sort(out)
	return out
}

// about is the name under which the check of a code is registered.
func about(code attest.Code) attest.Code {
	for _, prefix := range []string{"ak-", "key-"} {
		if s, ok := strings.CutPrefix(string(code), prefix); ok && slices.Contains(registered, attest.Code(s)) {
			return attest.Code(s)
		}
	}
	return code
}

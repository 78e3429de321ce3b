package system_test

import (
	"testing"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// TestOperatorVerbs gives tokens out, uses them by the command line and takes them back.
func TestOperatorVerbs(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{})
	v := verbs{t, w}
	v.one("cradle account create acme --out @/acme", "name")
	v.one("cradle account create other --out @/other", "name")

	v.one("cradle operator add carol --role auditor --out @/carol.json", "name", "role", "created_at", "file")
	v.files(w.Dir, 0o600, "carol.json")
	v.one("cradle account show acme --context @/carol.json", "name")
	v.bad(1, "auditor", "cradle account create third --context @/carol.json")
	v.bad(1, "auditor", "cradle device revoke acme-1 --account acme --reason x --context @/carol.json")

	// An account's owner gives tokens for that account alone.
	v.one("cradle operator add dave --role operator --expires 720h --out @/dave.json --context @/acme/context.json", "name", "role", "account", "expires_at")
	v.bad(1, `no account "other"`, "cradle operator add eve --role owner --account other --out @/eve.json --context @/acme/context.json")
	v.one("cradle account show acme --context @/dave.json", "name")
	v.bad(1, `no account "other"`, "cradle account show other --context @/dave.json")
	v.bad(1, "operator", "cradle operator add eve --role owner --out @/eve.json --context @/dave.json")
	v.bad(1, "oem-line", "cradle operator add line1 --role oem-line --out @/line1.json")
	v.one("cradle operator add line1 --role oem-line --account acme --out @/line1.json", "name")
	v.ok("cradle lot list --account acme --context @/line1.json")
	v.bad(1, "oem-line", "cradle device list --account acme --context @/line1.json")

	if rows := v.ok("cradle operator list", "name", "role", "created_at"); len(rows) != 3 {
		t.Errorf("operators: %v", rows)
	}
	if rows := v.ok("cradle operator list --context @/dave.json", "account", "last_used_at"); len(rows) != 2 {
		t.Errorf("operators of acme: %v", rows)
	}
	v.bad(1, "carol", "cradle operator remove carol --context @/acme/context.json") // not acme's
	v.one("cradle operator remove carol", "removed")
	v.bad(1, "token", "cradle account show acme --context @/carol.json")
	v.bad(1, "carol", "cradle operator remove carol")
	v.bad(2, "--role", "cradle operator add frank --role root --out @/frank.json")
	v.bad(2, "--expires", "cradle operator add frank --role owner --expires soon --out @/frank.json")
	v.bad(1, "past", "cradle operator add frank --role owner --expires 2020-01-01 --out @/frank.json")
}

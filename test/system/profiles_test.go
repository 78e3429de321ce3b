package system_test

import "strings"

// profiles reads the account's profiles, changes one and adds one.
func (v verbs) profiles() {
	v.Helper()
	if rows := v.ok("cradle account profile show acme", "profile", "kind", "validity", "evidence", "keys", "digest", "toml"); len(rows) != 4 {
		v.Errorf("%d profiles", len(rows))
	}
	v.bad(1, `no profile "lab"`, "cradle account profile show acme --profile lab")
	r := v.run("cradle account profile show acme")
	v.w.Write("profiles.toml", r.Stdout)
	if same := v.one("cradle account profile set acme --file @/profiles.toml", "account", "changes"); len(same["changes"].([]any)) != 0 {
		v.Errorf("what show prints changes %v", same)
	}
	v.w.Write("profiles.toml", strings.Replace(r.Stdout, `validity = "2h"`, `validity = "3h"`, 1)+"\n[lab]\nkind = \"client\"\n[[lab.extension]]\noid = \"1.2.3\"\nvalue = \"utf8:{order}\"\n")
	dry := v.one("cradle account profile set acme --file @/profiles.toml --dry-run")["changes"].([]any)
	done := v.one("cradle account profile set acme --file @/profiles.toml")["changes"].([]any)
	if len(dry) < 2 || len(dry) != len(done) {
		v.Errorf("dry run: %v; done: %v", dry, done)
	}
	for _, c := range done {
		if c := c.(map[string]any); c["profile"] == "operational" && (c["field"] != "validity" || c["old"] != `"2h"` || c["new"] != `"3h"`) {
			v.Errorf("change %v", c)
		}
	}
	r = v.run("cradle account profile show acme --profile lab")
	v.w.Write("lab.toml", r.Stdout)
	if same := v.one("cradle account profile set acme --file @/lab.toml"); len(same["changes"].([]any)) != 0 {
		v.Errorf("what show prints of one profile changes %v", same)
	}
	v.w.Write("wrong.toml", "[operational]\nvalidty = \"3h\"\n")
	v.bad(1, `unknown key "operational.validty"`, "cradle account profile set acme --file @/wrong.toml")
	v.bad(1, "none.toml", "cradle account profile set acme --file @/none.toml")
	v.bad(2, "--file", "cradle account profile set acme")
}

package system_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/test/world"
)

// verbs runs commands and holds every one to the contract: with --json one JSON object or JSON lines on
// stdout with snake_case names and RFC 3339 times, nothing on stderr; an error is one line and a hint on stderr and nothing
// on stdout; exit status 0, 1 or 2.
type verbs struct {
	*testing.T
	w *world.World
}

var (
	snake     = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	timeNames = regexp.MustCompile(`_at$|^not_(before|after)$|^(made|enqueued|updated|renewal|next_renewal|station_until|time|at|retry)$`)
)

// ok runs a verb of cradle, cradle-oem or cradle-agent that succeeds; fields must be in each line of its output.
func (v verbs) ok(command string, fields ...string) []map[string]any {
	v.Helper()
	r := v.run(command + " --json")
	if r.Code != 0 || r.Stderr != "" {
		v.Fatalf("%s: exit %d, stderr %q", r.Line, r.Code, r.Stderr)
	}
	rows := world.Lines[map[string]any](v, r.Stdout)
	for _, row := range rows {
		for _, f := range fields {
			if value, ok := row[f]; !ok || value == nil || value == "" {
				v.Errorf("%s: field %q is missing: %s", r.Line, f, r.Stdout)
			}
		}
		v.wellFormed(r.Line, row)
	}
	return rows
}

// one is ok for a verb that prints one object.
func (v verbs) one(command string, fields ...string) map[string]any {
	v.Helper()
	rows := v.ok(command, fields...)
	if len(rows) != 1 {
		v.Fatalf("%s: %d objects, want one", command, len(rows))
	}
	return rows[0]
}

// bad runs a verb that is refused (1) or wrong (2); the first line of stderr holds text.
func (v verbs) bad(code int, text, command string) {
	v.Helper()
	r := v.run(command + " --json")
	line, hint, _ := strings.Cut(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	program, _, _ := strings.Cut(command, " ")
	if r.Code != code || r.Stdout != "" || !strings.HasPrefix(line, program+": ") || !strings.Contains(line, text) ||
		!strings.HasPrefix(hint, "hint: ") && (hint != "" || program != "cradle-agent") || strings.Contains(hint, "\n") {
		v.Errorf("%s: exit %d, stdout %q, stderr %q; want exit %d and %q", r.Line, r.Code, r.Stdout, r.Stderr, code, text)
	}
}

// run runs a command line; @ is the world's folder. Verbs of cradle work on its data folder.
func (v verbs) run(command string) world.Result {
	v.Helper()
	args := strings.Fields(strings.ReplaceAll(command, "@", v.w.Dir))
	if args[0] == "cradle" && !strings.Contains(command, "--context") && !strings.Contains(command, "audit verify") && !strings.Contains(command, "witness init") && !strings.Contains(command, "--data") {
		args = append(args, "--data", v.w.Data)
	}
	return v.w.Run(args[0], args[1:]...)
}

func (v verbs) wellFormed(line string, x any) {
	v.Helper()
	switch x := x.(type) {
	case map[string]any:
		for name, value := range x {
			if !snake.MatchString(name) {
				v.Errorf("%s: name %q is not snake_case", line, name)
			}
			if s, ok := value.(string); ok && timeNames.MatchString(name) {
				if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
					v.Errorf("%s: %s is %q, not RFC 3339", line, name, s)
				}
			}
			v.wellFormed(line, value)
		}
	case []any:
		for _, e := range x {
			v.wellFormed(line, e)
		}
	}
}

func (v verbs) files(dir string, mode os.FileMode, names ...string) {
	v.Helper()
	for _, n := range names {
		info, err := os.Stat(filepath.Join(dir, n))
		if err != nil {
			v.Error(err)
		} else if mode != 0 && info.Mode().Perm() != mode {
			v.Errorf("%s has mode %v, want %v", n, info.Mode().Perm(), mode)
		}
	}
}

// TestVerbs runs every verb of the command contract as its table has them.
func TestVerbs(t *testing.T) {
	t.Parallel()
	no := false
	w := world.New(t, world.Options{AutoAccept: &no, TelemetryInterval: 200 * time.Millisecond})
	v := verbs{t, w}

	v.files(w.Data, 0, "endpoints.json")
	v.files(w.Data, 0o600, "context.json", "key-encryption-key")
	st := v.one("cradle status", "services", "est_url", "dps_host", "id_scope", "hubs", "checkpoint", "feed_key")
	for _, s := range st["services"].([]any) {
		if s := s.(map[string]any); s["healthy"] != true || s["url"] == "" {
			t.Errorf("service %v", s)
		}
	}
	v.bad(1, "context", "cradle status --context @/none.json")
	v.one("cradle anchors", "pem")
	v.one("cradle anchors --out @/anchors.pem", "file")
	v.bad(2, "unknown flag", "cradle anchors --oout @/anchors.pem")

	v.one("cradle account create acme --out @/acme --operational-validity 2h", "name", "est_host", "labels", "authorities", "profiles", "folder")
	v.files(w.Path("acme"), 0, "production-root.pem", "evaluation-root.pem", "production-operational.pem", "evaluation-operational.pem")
	v.files(w.Path("acme"), 0o600, "context.json", "order-key.pem")
	v.bad(1, "acme", "cradle account create acme --out @/acme2")
	v.bad(1, "a validity of 2h", "cradle account create acme --out @/acme --operational-validity 24h")
	v.bad(1, "reserved", "cradle account create provider --out @/provider")
	for _, left := range []string{"acme2", "provider"} {
		if _, err := os.Stat(w.Path(left)); !os.IsNotExist(err) {
			t.Errorf("a refused account left the folder %s (%v)", left, err)
		}
	}
	v.bad(1, `"Acme!"`, "cradle account create Acme! --out @/acme3")
	v.bad(1, "outside", "cradle account create other --operational-validity 1s")
	v.bad(2, "<name>", "cradle account create")
	show := v.one("cradle account show acme", "name", "est_host", "labels", "authorities", "profiles", "created_at")
	if labels := show["labels"].([]any); len(labels) != 4 {
		t.Errorf("labels: %v", labels)
	}
	v.bad(1, "other", "cradle account show other")
	v.clients()
	v.registrars()
	v.profiles()

	v.one("cradle-oem init --dir @/oem", "dir", "public")
	v.files(w.Path("oem"), 0o600, "order.key", "lot.key")
	v.one("cradle oem add oakline --key @/oem/oem.pub", "name", "authorities", "created_at")
	w.Write("text", "this is no PEM")
	v.bad(1, "CRADLE OEM ORDER KEY", "cradle oem add birch --key @/text")
	v.bad(2, "--key", "cradle oem add birch")

	w.NewMaker()
	m := v.one("cradle tpm-maker import @/tpm-maker.pem --maker sim-maker --tier simulator", "maker", "tier", "certificates", "fingerprints")
	if m["certificates"] != 2.0 || len(m["fingerprints"].([]any)) != 2 {
		t.Errorf("import of a root and an intermediate printed %v", m)
	}
	v.bad(1, "no certificate", "cradle tpm-maker import @/text --maker sim-maker --tier simulator")
	v.bad(1, "gold", "cradle tpm-maker import @/tpm-maker.pem --maker sim-maker --tier gold")

	w.Write("order.toml", w.OrderFile("order-1", "sn-"))
	w.Write("typo.toml", strings.Replace(w.OrderFile("order-2", "sn-"), "quantity", "quantitiy", 1))
	w.Write("order-2.toml", w.OrderFile("order-2", "zz-"))
	v.one("cradle order create --account acme --oem oakline --file @/order.toml --out @/order.jws", "id", "account", "oem", "state", "quantity", "created_at", "file")
	v.bad(1, "order-1", "cradle order create --account acme --oem oakline --file @/order.toml --out @/again.jws")
	v.bad(1, "quantitiy", "cradle order create --account acme --oem oakline --file @/typo.toml --out @/typo.jws")
	v.bad(1, "birch", "cradle order create --account acme --oem birch --file @/order-2.toml --out @/birch.jws")
	v.one("cradle-oem order accept @/order.jws --dir @/oem", "id", "account", "quantity", "dir", "station_until")
	v.one("cradle-oem order show order-1 --dir @/oem", "id", "not_before", "station_until")
	v.bad(1, "JWS", "cradle-oem order accept @/text --dir @/oem")

	tpm := w.NewTPM("one", world.GoodTPM)
	personalise := "cradle-oem personalise --dir @/oem --order order-1 --tpm " + tpm.Socket()
	v.one(personalise+" --serial sn-0001 --unit @/u1", "device", "serial", "unit", "made_at")
	v.one(personalise+" --serial sn-0001 --unit @/u1", "device") // again is the same
	v.files(w.Path("u1"), 0, "idevid.pem", "agent.toml", "services-anchors.pem", "account-anchors.pem")
	v.bad(1, "already unit sn-0001", personalise+" --serial sn-0002 --unit @/u2")
	two := strings.ReplaceAll(personalise, tpm.Socket(), w.NewTPM("two", world.GoodTPM).Socket())
	v.bad(1, "holds unit sn-0001", two+" --serial sn-0002 --unit @/u1")
	v.one(two+" --serial sn-0002 --unit @/u2", "device")
	v.bad(1, "zz-1", two+" --serial zz-1 --unit @/u3")
	v.bad(2, "--serial", personalise+" --unit @/u3")
	o := v.one("cradle order show order-1", "id", "state", "used", "quantity")
	if o["used"] != 2.0 || o["quantity"] != 1000.0 || o["state"] != "open" {
		t.Errorf("order show: %v", o)
	}
	lot := v.one("cradle-oem lot close --dir @/oem --order order-1 --out @/lot", "id", "units", "state", "report", "custody")
	v.files(w.Path("lot"), 0, "report.jws", "custody.jws")
	rows := v.ok("cradle lot list --account acme", "id", "order", "state", "units", "closed_at")
	if len(rows) != 1 || rows[0]["state"] != "waiting" || rows[0]["id"] != lot["id"] {
		t.Errorf("lot list: %v, closed: %v", rows, lot)
	}
	v.bad(1, "account other has no lot", "cradle lot accept "+lot["id"].(string)+" --account other")
	accepted := v.one("cradle lot accept "+lot["id"].(string)+" --account acme", "id", "state", "accepted_at")
	if accepted["state"] != "accepted" {
		t.Errorf("lot accept: %v", accepted)
	}
	v.bad(1, "none", "cradle lot accept none")

	groups := v.ok("cradle attestation register --account acme", "id", "class")
	if len(groups) != 2 {
		t.Errorf("enrolment groups: %v", groups)
	}
	v.one("cradle service-key show --service dps --out @/dps.key", "file")
	v.files(w.Dir, 0o600, "dps.key")
	v.ok("cradle attestation register --account acme --service-connection-string-file @/dps.key", "id")
	// After a roll the CA before it is believed beside it, until somebody says otherwise.
	if r := v.run("cradle ca roll acme --ca operational --class evaluation --json"); r.Code != 0 {
		t.Fatalf("ca roll: %s", r.Stderr)
	}
	for _, c := range []struct {
		flag string
		want any
	}{{"", groups[1]["certificate"]}, {" --alone", nil}, {"", groups[1]["certificate"]}} {
		rolled := v.ok("cradle attestation register --account acme --class evaluation" + c.flag)
		if len(rolled) != 1 || rolled[0]["previous"] != c.want || rolled[0]["certificate"] == groups[1]["certificate"] {
			t.Errorf("attestation register%s after a roll: %v, want %v beside the new CA", c.flag, rolled, c.want)
		}
		conn, err := os.ReadFile(w.Path("dps.key"))
		if err != nil {
			t.Fatal(err)
		}
		cs, err := sas.ParseConnectionString(string(conn))
		if err != nil {
			t.Fatal(err)
		}
		g, err := (&dps.Service{HTTP: w.HTTP(nil), Conn: cs}).Group(t.Context(), rolled[0]["id"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if slots := g.Attestation.X509.SigningCertificates; slots.Primary == nil || (slots.Secondary != nil) != (c.want != nil) {
			t.Errorf("attestation register%s: the group holds %+v", c.flag, slots)
		}
	}
	v.one("cradle service-key show --service hub", "connection_string")
	v.bad(2, "--service", "cradle service-key show --service moon")
	if s := v.one("cradle hub event-sources deviceLifecycleEvents", "hub", "sources"); !reflect.DeepEqual(s["sources"], []any{"deviceLifecycleEvents"}) {
		t.Errorf("sources %v", s)
	}
	v.bad(1, "no events", "cradle hub event-sources weather")
	v.bad(2, "--none", "cradle hub event-sources twinChangeEvents --none")
	v.one("cradle hub event-sources --none", "hub", "sources")
	v.one("cradle hub ca add acme @/acme/production-operational.pem", "name", "subject", "sha256", "not_after", "added_at")
	v.bad(1, "acme", "cradle hub ca add acme @/acme/production-root.pem")
	v.bad(1, "no hub", "cradle hub ca add more @/acme/production-root.pem --hub hub-9")
	v.bad(1, "holds no certificate", "cradle hub ca add none @/order.jws")
	if cas := v.ok("cradle hub ca list", "name", "sha256"); len(cas) != 1 {
		t.Errorf("CAs of the hub: %v", cas)
	}
	v.one("cradle hub ca remove acme", "name", "hub")
	v.bad(1, "trusts no CA", "cradle hub ca remove acme")

	v.agent()
	v.devices()

	v.one("cradle audit export --account acme --out @/audit.jsonl", "file", "log")
	if f := v.one("cradle audit verify @/audit.jsonl", "findings", "summary"); len(f["findings"].([]any)) != 0 {
		t.Errorf("findings: %v", f)
	}
	key := checkpointKey(v)
	v.one("cradle audit verify @/audit.jsonl --key " + key)
	wkey := v.one("cradle audit witness init witness.example.com/1 --out @/witness.key", "key")["key"].(string)
	v.files(w.Dir, 0o600, "witness.key")
	v.bad(1, "exists already", "cradle audit witness init witness.example.com/1 --out @/witness.key")
	v.one("cradle audit witness add "+wkey+" --account acme", "name", "added_at")
	v.one("cradle audit export --account acme --out @/audit2.jsonl")
	v.one("cradle audit verify @/audit2.jsonl --previous @/audit.jsonl --key " + key + " --cosign @/witness.key --out @/cosigned")
	v.one("cradle audit cosign @/cosigned --account acme", "log", "added")
	v.ok("cradle audit witness list --account acme", "name", "key")
	v.one("cradle audit export --account acme --out @/audit3.jsonl")
	v.one("cradle audit verify @/audit3.jsonl --previous @/cosigned --witness " + wkey)
	if r := v.run("cradle audit verify @/audit2.jsonl --json --witness " + wkey); r.Code != 1 || !strings.Contains(r.Stdout, "witness-missing") {
		t.Errorf("an export without the cosignature: exit %d, %s", r.Code, r.Stdout)
	}
	v.bad(2, "go together", "cradle audit verify @/audit3.jsonl --out @/cosigned")
	v.bad(2, "needs --key", "cradle audit verify @/audit3.jsonl --cosign @/witness.key --out @/cosigned")
	v.one("cradle audit publish --account acme", "url")
	v.one("cradle audit publish --account acme --off")
	v.one("cradle audit witness remove witness.example.com/1 --account acme", "removed")
	w.Write("seen", strings.Repeat("ab", 32)+"\n")
	if r := v.run("cradle audit verify @/audit.jsonl --json --seen @/seen"); r.Code != 1 || len(world.Decode[struct{ Findings []any }](t, r.Stdout).Findings) != 1 {
		t.Errorf("a certificate that a hub saw and the log does not have: exit %d, %s", r.Code, r.Stdout)
	}
	text, err := os.ReadFile(w.Path("audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	w.Write("cut.jsonl", string(text[:len(text)/2]))
	if r := v.run("cradle audit verify @/cut.jsonl"); r.Code != 1 {
		t.Errorf("half of an export: exit %d", r.Code)
	}
	v.bad(2, "none", "cradle audit verify @/none")

	wd := v.one("cradle order withdraw order-1 --reason recalled", "id", "state", "reason", "devices_affected")
	if wd["state"] != "withdrawn" || len(wd["devices_affected"].([]any)) != 2 {
		t.Errorf("withdraw: %v", wd)
	}
	v.bad(1, "withdrawn", "cradle-oem personalise --dir @/oem --order order-1 --serial sn-0005 --unit @/u5 --tpm "+w.NewTPM("five", world.GoodTPM).Socket())
	v.bad(2, "unexpected", "cradle fly")
	v.bad(2, "fly", "cradle-oem fly")
}

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

func checkpointKey(v verbs) string {
	for _, c := range v.one("cradle status")["checkpoint"].([]any) {
		if c := c.(map[string]any); c["log"] == "acme" {
			return c["key"].(string)
		}
	}
	v.Fatal("the status names no log of acme")
	return ""
}

// agent runs the agent of the unit in @/u1 and reads its status and telemetry.
func (v verbs) agent() {
	v.Helper()
	w := v.w
	u := &world.Unit{ID: "acme-sn-0001", Serial: "sn-0001", Dir: w.Path("u1")}
	p := w.Agent([]*world.Unit{u})
	w.AwaitConnected(time.Minute, u)
	s := v.one("cradle-agent status --config @/u1/agent.toml", "device", "stage", "credentials", "next_renewal", "hub")
	if s["stage"] != "connected" || s["running"] != true {
		v.Errorf("agent status: %v", s)
	}
	v.bad(1, "none.toml", "cradle-agent run --config @/none.toml --verbose")
	v.bad(1, "another agent uses", "cradle-agent run --config @/u1/agent.toml")
	v.bad(2, "--config", "cradle-agent run")
	v.bad(2, "-fast", "cradle-agent run --fast")
	v.bad(2, "fly", "cradle-agent fly")
	w.Wait("telemetry", time.Minute, func() (bool, string) { return len(w.Events()) >= 4, "" })
	v.bad(1, "no hub", "cradle hub events --hub hub-9")
	v.bad(2, "one of --serial", "cradle revoke --account acme --reason keyCompromise")
	v.bad(2, "one of --serial", "cradle revoke --account acme --order ord-1 --oem oakline")
	events := v.ok("cradle hub events --hub hub-1 --limit 3", "cursor", "device", "sequence", "properties", "body", "enqueued")
	if len(events) != 3 {
		v.Fatalf("%d events, want 3", len(events))
	}
	next := v.ok("cradle hub events --limit 1 --from " + events[0]["cursor"].(string))
	if len(next) != 1 || next[0]["cursor"] != events[1]["cursor"] || next[0]["sequence"] != 2.0 {
		v.Errorf("after the first event's cursor: %v", next)
	}
	v.follow(events[2]["cursor"].(string))
	if code := p.Stop(); code != 0 {
		v.Errorf("the agent ended with %d: %s", code, p.Log())
	}
	if s := v.one("cradle-agent status --config @/u1/agent.toml"); s["running"] != false || s["stage"] != "stopped" {
		v.Errorf("status of a stopped agent: %v", s)
	}
}

// follow reads events as they come and stops it as a person would.
func (v verbs) follow(from string) {
	v.Helper()
	cmd := v.w.Command("cradle", "hub", "events", "--follow", "--from", from, "--data", v.w.Data, "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		v.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		v.Fatal(err)
	}
	defer cmd.Process.Kill()
	watchdog := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	sc := bufio.NewScanner(out)
	for n := range 3 {
		if !sc.Scan() || !json.Valid(sc.Bytes()) {
			v.Fatalf("followed event %d: %q, %v", n, sc.Text(), sc.Err())
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		v.Fatal(err)
	}
	for sc.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		v.Errorf("hub events --follow, interrupted: %v", err)
	}
}

// devices lists, shows and changes the one device.
func (v verbs) devices() {
	v.Helper()
	for q, n := range map[string]int{"": 2, " --limit 1": 1, " --order order-1": 2, " --state active": 1, " --state accepted": 1} {
		if rows := v.ok("cradle device list --account acme"+q, "id", "serial", "state", "tier", "order", "lot", "created_at"); len(rows) != n {
			v.Errorf("device list%s: %v, want %d", q, rows, n)
		}
	}
	v.bad(1, "no order", "cradle device list --account acme --order order-9")
	if rows := v.ok("cradle device list --account acme --context @/acme/context.json --state revoked"); len(rows) != 0 {
		v.Errorf("revoked devices: %v", rows)
	}
	d := v.one("cradle device show acme-sn-0001 --chain @/chain.pem --context @/acme/context.json", "id", "state", "credentials", "ek_digest", "tpm_maker")
	for _, c := range d["credentials"].([]any) {
		for _, f := range []string{"profile", "serial", "fingerprint", "slot", "not_before", "not_after", "issued_at", "pem", "chain"} {
			if c := c.(map[string]any); c[f] == "" || c[f] == nil {
				v.Errorf("device show: a credential without %s: %v", f, c)
			}
		}
	}
	v.files(v.w.Dir, 0, "chain.pem")
	v.bad(1, "acme-nobody", "cradle device show acme-nobody")
	for _, c := range []struct{ verb, device, state string }{{"suspend", "acme-sn-0001", "suspended"}, {"release", "acme-sn-0001", "active"},
		{"revoke", "acme-sn-0001", "revoked"}, {"retire", "acme-sn-0002", "retired"}} {
		changed := v.one("cradle device "+c.verb+" "+c.device+" --reason test", "device", "state", "est_at", "provisioning_at", "hub_at")
		if changed["state"] != c.state {
			v.Errorf("device %s: %v", c.verb, changed)
		}
	}
	v.bad(1, "revoked", "cradle device release acme-sn-0001 --reason test")
	v.bad(1, "in quarantine", "cradle device heal acme-sn-0001 --reason test")
	v.bad(1, "retired", "cradle device suspend acme-sn-0002 --reason test")
}

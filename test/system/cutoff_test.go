package system_test

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

// TestOrderCreateCutOff: an order that is registered has its file, wherever order create was stopped, and the data
// folder may be moved in between.
func TestOrderCreateCutOff(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{})
	w.Acts()
	v := verbs{t, w}
	file := func(id string) string { return w.Write(id+".toml", w.OrderFile(id, id+"-")) }
	create := func(id string) string {
		return "cradle order create --account " + world.Account + " --oem " + world.OEM + " --file " + file(id) + " --out @/" + id + ".jws"
	}
	// Stopped after the registration: the file is there under another name.
	v.one(create("o1"), "id", "file")
	if err := os.Rename(w.Path("o1.jws"), w.Path("o1.jws.part")); err != nil {
		t.Fatal(err)
	}
	r := v.run(create("o1") + " --json")
	if r.Code != 0 || !strings.Contains(r.Stdout, `"id":"o1"`) || !strings.Contains(r.Stderr, "earlier run") {
		t.Errorf("exit %d, %s, %s", r.Code, r.Stdout, r.Stderr)
	}
	v.files(w.Dir, 0, "o1.jws")
	v.one("cradle-oem order accept @/o1.jws --dir @/oem")
	// Stopped before: what the file holds was never registered, and a new one is made.
	v.one(create("o2"))
	signed, err := os.ReadFile(w.Path("o2.jws"))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(create("o3"), "o3.jws", "o2.jws", 1)
	for _, rubbish := range []string{"", "rubbish", string(signed[:len(signed)/2])} {
		if err := os.WriteFile(w.Path("o2.jws.part"), []byte(rubbish), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v.one(other)
	// Refused: no file is left that looks like an order.
	v.bad(1, "exists already", create("o3"))
	for _, name := range []string{"o3.jws", "o3.jws.part", "o2.jws.part"} {
		if _, err := os.Stat(w.Path(name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if err := w.Admin().Call(t.Context(), http.MethodGet, "/orders/nothing", nil, new(admin.Order)); cradle.KindOf(err) != cradle.NotFound {
		t.Error(err)
	}
	// The account's folder is found from where the data folder is now.
	moved := w.Path("moved")
	ctx, err := os.ReadFile(w.Path("data", "context.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.Write("context.json", string(ctx))
	if err := errors.Join(os.Mkdir(moved, 0o700), os.Rename(w.Path("data", "accounts"), w.Path("moved", "accounts")), os.Rename(w.Path("context.json"), w.Path("moved", "context.json"))); err != nil {
		t.Fatal(err)
	}
	v.one(create("o4") + " --context " + moved + "/context.json")
	v.bad(2, "none.jws", "cradle-oem order accept @/none.jws --dir @/oem")
}

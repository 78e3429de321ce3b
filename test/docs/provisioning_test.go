package docs_test

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/test/world"
)

// TestProvisioningPageSignature: the receiver's check on the page believes what we sign, and nothing else.
func TestProvisioningPageSignature(t *testing.T) {
	testenv.Require(t, "python3")
	var code string
	for _, b := range blocks(read(t, "docs/operating/provisioning.md")) {
		if b.lang == "python" {
			code = b.text()
		}
	}
	key, body := []byte("0123456789abcdef0123456789abcdef"), `{"linkedHubs":["h"]}`
	for name, c := range map[string]struct {
		key    []byte
		header string
		want   string
	}{
		"ours":      {key, dps.SignWebhook(key, []byte(body), time.Now()), "True"},
		"other key": {[]byte("x"), dps.SignWebhook(key, []byte(body), time.Now()), "False"},
		"old":       {key, dps.SignWebhook(key, []byte(body), time.Now().Add(-time.Hour)), "False"},
	} {
		out, err := exec.Command("python3", "-c", code+"\nimport sys\nprint(genuine(sys.argv[1], sys.argv[2], sys.argv[3].encode()))",
			base64.StdEncoding.EncodeToString(c.key), c.header, body).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != c.want {
			t.Errorf("%s: got %s %v, want %s", name, out, err, c.want)
		}
	}
}

// TestProvisioningPageVerbs runs the page's verbs about linked hubs, as they stand.
func TestProvisioningPageVerbs(t *testing.T) {
	testenv.Long(t)
	w := world.New(t, world.Options{})
	dir := t.TempDir()
	for name, text := range map[string]string{
		"eu-2.txt":  "HostName=eu-2.azure-devices.example;SharedAccessKeyName=iothubowner;SharedAccessKey=a2V5\n",
		"admin.txt": "correct horse\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var verbs []string
	for line := range strings.Lines(read(t, "docs/operating/provisioning.md")) {
		if strings.HasPrefix(line, "    cradle provisioning hub ") || strings.HasPrefix(line, "    cradle provisioning webhook-key ") {
			verbs = append(verbs, line)
		}
	}
	// Removal needs a hub that takes nobody; on the page it comes after the end of the maintenance.
	out := shell(t, w, dir, nil, strings.Join(verbs[:len(verbs)-1], "")+"cradle provisioning hub maintenance eu-2 --on\n"+verbs[len(verbs)-1]+"cradle provisioning hub list --json\n")
	prints(t, out, "hub eu-2 (azure, eu-2.azure-devices.example) is linked, weight 2, open", "hub floor-1 (mqtt, broker.example.com:8883) is linked",
		"is linked, weight 2, maintenance", "is linked, weight 2, draining", "hub eu-2 is linked no more", `"name":"floor-1"`)
	for _, secret := range []string{"a2V5", "correct horse"} {
		if strings.Contains(out, secret) {
			t.Errorf("%q is printed:\n%s", secret, out)
		}
	}
}

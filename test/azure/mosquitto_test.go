package azure_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// TestMosquitto: what the script prints is docs/transcripts/mosquitto.txt (UPDATE=1 writes it).
func (s suite) TestMosquitto(t *testing.T) {
	testenv.Require(t, "mosquitto_pub", "curl", "openssl")
	script, err := filepath.Abs("scripts/mosquitto.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "HOST="+s.host, "ID_SCOPE="+s.idScope, "LABEL="+world.Account+"-operational", "DEVICE=mosquitto-1",
		"HUB_TOKEN="+s.hubToken(t), "EST_USER="+user, "EST_PASSWORD="+password, "ANCHORS="+s.anchors)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("mosquitto.sh: %v\n%s%s", err, out, stderr.String())
	}
	if got := s.events(t, "mosquitto-1"); len(got) != 1 || string(got[0].Body) != `{"temperature":21}` || got[0].Props["seq"] != "1" {
		t.Errorf("the hub has %+v", got)
	}
	text := string(out)
	for _, r := range [][2]string{{s.dir + "/", ""}, {s.idScope, "0ne00000001"}, {"localhost", "iot.example.com"}} {
		text = strings.ReplaceAll(text, r[0], r[1])
	}
	text = regexp.MustCompile(`0ne[0-9A-F]{8}`).ReplaceAllString(text, "0ne00000001")
	file := filepath.Join("..", "..", "docs", "transcripts", "mosquitto.txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != text {
		t.Errorf("docs/transcripts/mosquitto.txt is not what was printed: %v\n%s", err, text)
	}
}

package destination_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/destination"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// mosquitto is Debian's broker as docs/operating/provisioning.md configures it: devices by mutual TLS at one listener, the
// administrator by password at the other.
type mosquitto struct {
	t                *testing.T
	devices, control string
	server           *provisioningtest.CA
	account          *provisioningtest.CA
}

func pemFile(t *testing.T, file, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	testenv.Require(t, "mosquitto")
	testenv.Require(t, "mosquitto_ctrl")
	plugins, err := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	if err != nil || len(plugins) == 0 {
		t.Fatalf("mosquitto's dynamic security plugin is missing: %v", err)
	}
	dir := t.TempDir()
	m := &mosquitto{t: t, devices: testenv.Address(t), control: testenv.Address(t), server: provisioningtest.NewCA(t, "", "broker's CA"), account: provisioningtest.NewCA(t, "acme", "acme operational")}
	leaf := m.server.Leaf("broker", func(c *x509.Certificate) {
		c.ExtKeyUsage, c.IPAddresses, c.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	})
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dynsec := filepath.Join(dir, "dynsec.json")
	if out, err := exec.Command("mosquitto_ctrl", "dynsec", "init", dynsec, "admin", "correct horse").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The administrator may read what devices say, for the test's sake.
	b, err := os.ReadFile(dynsec)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	role := state["roles"].([]any)[0].(map[string]any)
	role["acls"] = append(role["acls"].([]any), map[string]any{"acltype": "subscribePattern", "topic": "devices/#", "allow": true})
	if b, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dynsec, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, devicePort, _ := net.SplitHostPort(m.devices)
	_, controlPort, _ := net.SplitHostPort(m.control)
	conf := fmt.Sprintf(`
plugin %s
plugin_opt_config_file %s
allow_anonymous false
listener %s 127.0.0.1
cafile %s
certfile %[5]s
keyfile %[6]s
require_certificate true
use_identity_as_username true
listener %[7]s 127.0.0.1
certfile %[5]s
keyfile %[6]s
`, plugins[0], dynsec, devicePort, pemFile(t, filepath.Join(dir, "account.pem"), "CERTIFICATE", m.account.Cert.Raw),
		pemFile(t, filepath.Join(dir, "broker.pem"), "CERTIFICATE", leaf.Certificate[0]), pemFile(t, filepath.Join(dir, "broker.key"), "PRIVATE KEY", key), controlPort)
	if os.Getuid() == 0 {
		conf += "user root\n"
	}
	file := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mosquitto", "-c", file)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	testenv.Eventually(t, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", m.control)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return m
}

func (m *mosquitto) link() provisioning.Link {
	return provisioning.Link{Name: "broker", Kind: provisioning.LinkMQTT, Host: m.devices, Control: m.control, Weight: 1, Secret: "admin:correct horse",
		Anchors: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.server.Cert.Raw}))}
}

// connect is a device, or the administrator when leaf is nil; messages go to the channel.
func (m *mosquitto) connect(leaf *tls.Certificate, id string) (*mqtt.Client, <-chan string, <-chan error, error) {
	conf := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}
	conf.RootCAs.AddCert(m.server.Cert)
	addr, o := m.control, mqtt.Options{ClientID: id, Clean: true, Username: "admin", Password: []byte("correct horse")}
	if leaf != nil {
		conf.Certificates = []tls.Certificate{*leaf}
		addr, o.Username, o.Password = m.devices, "", nil
	}
	got := make(chan string, 100)
	o.OnMessage = func(topic string, payload []byte) error { got <- topic + " " + string(payload); return nil }
	conn, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := mqtt.Dial(m.t.Context(), conn, o)
	if err != nil {
		return nil, nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.Background()) }()
	m.t.Cleanup(func() { c.Close() })
	return c, got, ended, nil
}

func entry(id cradle.DeviceID, print string) *iothub.Device {
	return &iothub.Device{DeviceID: id, Status: iothub.Enabled, Authentication: iothub.Authentication{Type: iothub.SelfSigned, X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: print}}}
}

// What an operator relies on when a device is assigned to a broker, blocked and taken off it.
func TestMosquitto(t *testing.T) {
	m := startMosquitto(t)
	d, err := destination.Open(m.link())
	if err != nil || d.Twins != nil {
		t.Fatalf("%+v %v", d, err)
	}
	reg, ctx := d.Registry, t.Context()
	admin, heard, _, err := m.connect(nil, "watcher")
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Subscribe(ctx, "devices/#", 1); err != nil {
		t.Fatal(err)
	}
	leaf := m.account.Leaf("dev-1", nil)

	// Not assigned: the certificate alone is worth nothing.
	c, _, _, err := m.connect(&leaf, "dev-1")
	if err == nil {
		if err := c.Subscribe(ctx, "devices/dev-1/messages/devicebound/#", 1); err == nil {
			t.Error("a device that is not assigned may subscribe")
		}
		c.Publish(ctx, "devices/dev-1/messages/events/", 1, []byte("too early"))
		c.Close()
	}
	if _, err := reg.GetDevice(ctx, "dev-1"); cradle.KindOf(err) != cradle.NotFound {
		t.Fatalf("not assigned: %v", err)
	}
	if err := reg.WriteDevice(ctx, entry("dev-1", "AA"), iothub.AnyETag); cradle.KindOf(err) != cradle.NotFound {
		t.Fatalf("update of nothing: %v", err)
	}

	// Assigned.
	if err := reg.WriteDevice(ctx, entry("dev-1", "AA"), ""); err != nil {
		t.Fatal(err)
	}
	if err := reg.WriteDevice(ctx, entry("dev-1", "BB"), ""); cradle.KindOf(err) != cradle.Conflict {
		t.Fatalf("created twice: %v", err)
	}
	got, err := reg.GetDevice(ctx, "dev-1")
	if err != nil || got.Status != iothub.Enabled || got.Authentication.X509Thumbprint.PrimaryThumbprint != "AA" {
		t.Fatalf("%+v %v", got, err)
	}
	c, down, ended, err := m.connect(&leaf, "dev-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Subscribe(ctx, "devices/dev-1/messages/devicebound/#", 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Subscribe(ctx, "devices/dev-2/#", 1); err == nil {
		t.Error("a device may subscribe to another's topics")
	}
	if err := c.Subscribe(ctx, "#", 1); err == nil {
		t.Error("a device may subscribe to everything")
	}
	c.Publish(ctx, "devices/dev-2/messages/events/", 1, []byte("as another"))
	c.Publish(ctx, "$CONTROL/dynamic-security/v1", 1, []byte(`{"commands":[{"command":"deleteClient","username":"admin"}]}`))
	if err := c.Publish(ctx, "devices/dev-1/messages/events/", 1, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "devices/dev-1/messages/events/ hello" {
		t.Errorf("heard %q", got)
	}
	_ = down

	// Blocked: the connection ends, and a new one may do nothing.
	got.Status, got.StatusReason = iothub.Disabled, "cradle: device is revoked"
	if err := reg.WriteDevice(ctx, got, "stale"); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("stale ETag: %v", err)
	}
	if err := reg.WriteDevice(ctx, got, got.ETag); err != nil {
		t.Fatal(err)
	}
	<-ended
	if got, err = reg.GetDevice(ctx, "dev-1"); err != nil || got.Status != iothub.Disabled || got.StatusReason != "cradle: device is revoked" {
		t.Fatalf("%+v %v", got, err)
	}
	if err := reg.WriteDevice(ctx, entry("dev-1", "CC"), ""); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("created while it is blocked: %v", err)
	}
	if got, err = reg.GetDevice(ctx, "dev-1"); err != nil || got.Status != iothub.Disabled {
		t.Fatalf("a create let a blocked device in: %+v %v", got, err)
	}
	if c, _, _, err := m.connect(&leaf, "dev-1"); err == nil {
		t.Log("mosquitto completes the CONNECT of a blocked device; its certificate is not revoked there")
		if c.Subscribe(ctx, "devices/dev-1/messages/devicebound/#", 1) == nil {
			t.Error("a blocked device may subscribe")
		}
		c.Publish(ctx, "devices/dev-1/messages/events/", 1, []byte("blocked"))
		c.Close()
	}

	// Released.
	got.Status, got.StatusReason = iothub.Enabled, ""
	if err := reg.WriteDevice(ctx, got, got.ETag); err != nil {
		t.Fatal(err)
	}
	if c, _, ended, err = m.connect(&leaf, "dev-1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(ctx, "devices/dev-1/messages/events/", 1, []byte("again")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "devices/dev-1/messages/events/ again" {
		t.Errorf("heard %q", got)
	}

	// It has left.
	if err := reg.DeleteDevice(ctx, "dev-1", ""); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := reg.DeleteDevice(ctx, "dev-1", ""); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("deleted twice: %v", err)
	}

	for _, id := range []cradle.DeviceID{"a+b", "#", "a/b", "$x", "%u", ""} {
		if err := reg.WriteDevice(ctx, entry(id, "AA"), ""); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("device id %q: %v", id, err)
		}
	}
	sas := entry("dev-3", "")
	sas.Authentication.Type = "sas"
	if err := reg.WriteDevice(ctx, sas, ""); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("a device without certificate: %v", err)
	}
	wrong := m.link()
	wrong.Secret = "admin:wrong"
	if d, err = destination.Open(wrong); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Registry.GetDevice(ctx, "dev-1"); cradle.KindOf(err) != cradle.Busy || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
	select {
	case got := <-heard:
		t.Errorf("heard %q", got)
	default:
	}
}

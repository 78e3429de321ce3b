package main

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/hub/hubserver"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
)

// To the provisioning service the hub of this process and the same hub by REST are one.
func TestOwnHub(t *testing.T) {
	dir := t.TempDir()
	vault, err := filekey.OpenVault(dir+"/key-encryption-key", false)
	if err != nil {
		t.Fatal(err)
	}
	store, err := hubdb.Open(t.Context(), dir+"/hub.db", vault)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	h := hub.New(hub.Config{Store: store})
	if err := h.Ensure(t.Context(), firstHub); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(hubserver.New(hubserver.Config{Hub: h, Default: firstHub}))
	defer server.Close()
	cs, err := h.ConnectionString(t.Context(), firstHub, strings.TrimPrefix(server.URL, "https://"), "iothubowner")
	if err != nil {
		t.Fatal(err)
	}
	type both interface {
		provisioning.HubRegistry
		provisioning.Twins
	}
	for name, r := range map[string]both{"calls": ownHub{h, firstHub}, "REST": iothub.NewRegistry(server.Client(), cs)} {
		ctx, id := t.Context(), cradle.DeviceID("dev-"+strings.ToLower(name))
		kinds := func(what string, want cradle.Kind, errs ...error) {
			t.Helper()
			for _, err := range errs {
				if (err != nil) != (want != 0) || err != nil && cradle.KindOf(err) != want {
					t.Errorf("%s: %s: %v", name, what, err)
				}
			}
		}
		get := func(_ *iothub.Device, err error) error { return err }
		twin := func(_ *iothub.Twin, err error) error { return err }
		patch := func(desired string) *iothub.TwinPatch {
			p := new(iothub.TwinPatch)
			p.Properties.Desired = json.RawMessage(desired)
			return p
		}
		kinds("nobody there", cradle.NotFound, get(r.GetDevice(ctx, id)), r.DeleteDevice(ctx, id, iothub.AnyETag), twin(r.Twin(ctx, id)),
			twin(r.PatchTwin(ctx, id, patch(`{"a":1}`), iothub.AnyETag)), r.WriteDevice(ctx, &iothub.Device{DeviceID: id}, iothub.AnyETag))
		policy := "acme-operational"
		d := &iothub.Device{DeviceID: id, Status: iothub.Enabled, Authentication: iothub.Authentication{Type: iothub.SelfSigned,
			X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: strings.Repeat("ab", 32)}}, CredentialPolicy: &policy}
		kinds("nonsense", cradle.Invalid, r.WriteDevice(ctx, &iothub.Device{DeviceID: id, Status: "on"}, ""))
		kinds("created", 0, r.WriteDevice(ctx, d, ""))
		kinds("created again", cradle.Conflict, r.WriteDevice(ctx, d, ""))
		got, err := r.GetDevice(ctx, id)
		if err != nil || got.Authentication != d.Authentication || got.CredentialPolicy == nil || *got.CredentialPolicy != policy || got.ETag == "" {
			t.Fatalf("%s: read: %+v %v", name, got, err)
		}
		got.Status, got.StatusReason = iothub.Disabled, "cradle: device is revoked"
		kinds("changed", 0, r.WriteDevice(ctx, got, got.ETag))
		kinds("changed by who does not know", cradle.Conflict, r.WriteDevice(ctx, got, got.ETag), r.DeleteDevice(ctx, id, got.ETag))
		kinds("twin", 0, twin(r.PatchTwin(ctx, id, patch(`{"a":1,"b":2}`), iothub.AnyETag)), twin(r.PatchTwin(ctx, id, patch(`{"a":null}`), iothub.AnyETag)))
		kinds("twin that is no object", cradle.Invalid, twin(r.PatchTwin(ctx, id, patch(`[]`), iothub.AnyETag)))
		if tw, err := r.Twin(ctx, id); err != nil || !desires(tw, `"b":2`) || desires(tw, `"a"`) {
			t.Errorf("%s: twin %s %v", name, tw.Properties.Desired, err)
		}
		kinds("twin replaced", 0, twin(r.ReplaceTwin(ctx, id, patch(`{"c":3}`), iothub.AnyETag)))
		if tw, err := r.Twin(ctx, id); err != nil || !desires(tw, `"c":3`) || desires(tw, `"b"`) {
			t.Errorf("%s: twin %s %v", name, tw.Properties.Desired, err)
		}
		kinds("removed", 0, r.DeleteDevice(ctx, id, iothub.AnyETag))
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := r.WriteDevice(gone, d, ""); err == nil {
			t.Errorf("%s: written for nobody", name)
		}
	}
}

func desires(t *iothub.Twin, what string) bool {
	return strings.Contains(string(t.Properties.Desired), what)
}

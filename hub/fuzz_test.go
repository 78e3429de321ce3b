package hub

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// FuzzRegistryBody: an entry that is taken reads back as an entry that is taken and means the same.
func FuzzRegistryBody(f *testing.F) {
	f.Add([]byte(`{"deviceId":"d","status":"disabled","statusReason":"x","authentication":{"type":"sas","symmetricKey":{"primaryKey":"AAAAAAAAAAAAAAAAAAAAAA==","secondaryKey":null}},"capabilities":{"iotEdge":true},"parentScopes":["p"]}`))
	f.Add([]byte(`{"deviceId":"d","cloudToDeviceMessageCount":"0","authentication":{"x509Thumbprint":{"primaryThumbprint":"aabbccddeeff00112233445566778899aabbccdd"}},"deviceScope":"s"}`))
	f.Add([]byte(`{"id":"d","moduleId":"m","importMode":"create","eTag":"x","tags":{"a":1},"properties":{"desired":{}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w iothub.Device
		if json.Unmarshal(b, &w) == nil {
			d, err := fromWire(&w)
			if err != nil {
				if cradle.KindOf(err) != cradle.Invalid {
					t.Fatalf("refused as %v: %v", cradle.KindOf(err), err)
				}
			} else {
				d.Auth.keys(Auth{})
				d.ownScope("s")
				out, err := json.Marshal(d.wire(false, time.Time{}))
				var again iothub.Device
				if err == nil {
					err = json.Unmarshal(out, &again)
				}
				if err != nil {
					t.Fatal(err)
				}
				d2, err := fromWire(&again)
				if err == nil {
					d2.ownScope("s")
				}
				if err != nil || !reflect.DeepEqual(d, d2) {
					t.Fatalf("%s: got %#v %v, want %#v", out, d2, err, d)
				}
			}
		}
		var m iothub.Module
		if json.Unmarshal(b, &m) == nil {
			if _, err := moduleFromWire(&m); err != nil && cradle.KindOf(err) != cradle.Invalid {
				t.Fatal(err)
			}
		}
		var bulk iothub.BulkDevice
		if json.Unmarshal(b, &bulk) == nil {
			if mode, err := iothub.ParseImportMode(bulk.ImportMode); err == nil {
				if again, err := iothub.ParseImportMode(mode); again != mode || err != nil {
					t.Fatalf("mode %q reads as %q", mode, again)
				}
			}
		}
	})
}

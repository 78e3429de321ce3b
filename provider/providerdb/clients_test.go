package providerdb_test

import (
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// TestClientUnit: of the units that a certificate may stand for, the first that the manifest of this CA has is found, with
// the device of its name in this account, if there is one, and whether the certificate is on record.
func TestClientUnit(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		d, err := providerdb.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		now := time.Now().UTC().Truncate(time.Microsecond)
		set := func(account cradle.AccountID, id string, units ...provider.ClientUnit) provider.ClientCA {
			c := provider.ClientCA{ID: id, Account: account, Profile: cradle.Operational, Certs: [][]byte{{1}}, Created: now}
			if err := d.SetClientCA(t.Context(), c, units, ledger.Leaf{Log: string(account), Kind: "x", Time: now, Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			return c
		}
		for _, a := range []cradle.AccountID{"acme", "other"} {
			leaf := ledger.Leaf{Log: string(a), Kind: "x", Time: now, Data: []byte("x")}
			if err := d.CreateAccount(t.Context(), provider.Account{ID: a, OrderKey: []byte("k"), Created: now}, nil, nil, leaf); err != nil {
				t.Fatal(err)
			}
		}
		one := set("acme", "one", provider.ClientUnit{Unit: "sha256:aa"}, provider.ClientUnit{Unit: "sn:7", Name: "gw-7"}, provider.ClientUnit{Unit: "id:gw-1", Name: "gw-1"})
		two := set("acme", "two", provider.ClientUnit{Unit: "sha256:bb", Name: "gw-1"})
		theirs := set("other", "theirs", provider.ClientUnit{Unit: "id:gw-1", Name: "gw-1"})
		i := &provider.Intent{ID: "i", Account: "acme", Device: "gw-1", Profile: cradle.Operational, Operation: provider.Enroll, CSR: "c", SPKI: "s", Challenge: "once", Serial: "1a",
			Created: now, Lineage: "operational/abcd"}
		v := provider.Device{ID: "gw-1", Account: "acme", Serial: "gw-1", Tier: cradle.SoftwareKey, Origin: "ca/one/id:gw-1", State: cradle.Active, Created: now}
		if _, err := d.BeginIssue(t.Context(), i, &provider.Birth{Device: v}, ""); err != nil {
			t.Fatal(err)
		}
		if err := d.FinishIssue(t.Context(), "i", provider.Certificate{Digest: "dd", Serial: "1a", Account: "acme", Device: "gw-1", Profile: cradle.Operational, DER: []byte{1},
			NotBefore: now, NotAfter: now, Slot: provider.Current, Intent: "i", Issued: now, Lineage: i.Lineage}, ledger.Leaf{Log: "acme", Kind: "x", Time: now, Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			name           string
			ca             provider.ClientCA
			units          []string
			serial, digest string
			unit           string // empty: none
			id             cradle.DeviceID
			there          bool
			recorded       bool
		}{
			{"the first of three", one, []string{"sha256:aa", "sn:7", "id:gw-1"}, "2b", "ee", "sha256:aa", "", false, false},
			{"the second of three", one, []string{"sha256:00", "sn:7", "id:gw-1"}, "2b", "ee", "sn:7", "gw-7", false, false},
			{"the last of three", one, []string{"sha256:00", "sn:8", "id:gw-1"}, "2b", "ee", "id:gw-1", "gw-1", true, false},
			{"the last of two", one, []string{"sha256:00", "id:gw-1"}, "2b", "ee", "id:gw-1", "gw-1", true, false},
			{"the only one", one, []string{"id:gw-1"}, "2b", "ee", "id:gw-1", "gw-1", true, false},
			{"none of three", one, []string{"sha256:00", "sn:8", "id:gw-2"}, "2b", "ee", "", "", false, false},
			{"another CA's unit", one, []string{"sha256:bb", "sn:8"}, "2b", "ee", "", "", false, false},
			{"a name of its own", two, []string{"sha256:bb", "id:x"}, "2b", "ee", "sha256:bb", "gw-1", true, false},
			{"another account's device", theirs, []string{"sha256:00", "id:gw-1"}, "2b", "ee", "id:gw-1", "gw-1", false, false},
			{"on record", one, []string{"sha256:00", "id:gw-1"}, "1a", "dd", "id:gw-1", "gw-1", true, true},
			{"the serial number of one on record", one, []string{"sha256:00", "id:gw-1"}, "1a", "ee", "id:gw-1", "gw-1", true, false},
			{"the digest of one on record", one, []string{"sha256:00", "id:gw-1"}, "2b", "dd", "id:gw-1", "gw-1", true, false},
		} {
			t.Run(x.name, func(t *testing.T) {
				u, err := d.ClientUnit(t.Context(), x.ca, x.units, cradle.CertSerial(x.serial), x.digest)
				if x.unit == "" {
					if cradle.KindOf(err) != cradle.NotFound {
						t.Fatalf("got %+v, %v; want NotFound", u, err)
					}
					return
				}
				if err != nil || u.Unit != x.unit || u.Name != x.id || u.Recorded != x.recorded {
					t.Errorf("got %+v, %v", u, err)
				}
				if there := u.Device.ID == "gw-1" && u.Device.State == cradle.Active && u.Device.Created.Equal(now); there != x.there || !there && u.Device.ID != "" {
					t.Errorf("device %+v", u.Device)
				}
			})
		}
	})
}

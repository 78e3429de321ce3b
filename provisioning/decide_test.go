package provisioning_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// publicOf is the TPM2B_PUBLIC of a new RSA key that says it lives in a TPM.
func publicOf(t *testing.T) ([]byte, [32]byte) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a := tpm2.RSASRKTemplate
	a.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	b := tpm2.Marshal(tpm2.New2B(a))
	p, err := tpmblob.Parse("key", b)
	if err != nil {
		t.Fatal(err)
	}
	return b, p.Digest()
}

// TestAttacks gives the decision, for each way of attestation, one good caller and everything that is wrong with the bad
// ones: each is refused, and for its own reason.
func TestAttacks(t *testing.T) {
	now := time.Now()
	on := provisioning.Terms{Enabled: true}

	root := provisioningtest.NewCA(t, "acme", "root")
	mid := root.Intermediate("factory 1", nil)
	low := mid.Intermediate("line 3", nil)
	stranger := provisioningtest.NewCA(t, "acme", "stranger")
	fakeRoot := provisioningtest.NewCA(t, "acme", "root")
	leafOf := func(ca *provisioningtest.CA, change func(*x509.Certificate)) *x509.Certificate {
		return ca.Leaf("dev-1", change).Leaf
	}
	byRoot, byLow, byMid := leafOf(root, nil), leafOf(low, nil), leafOf(mid, nil)
	oldMid := root.Intermediate("factory 0", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	narrow := root.Intermediate("narrow", func(c *x509.Certificate) { c.MaxPathLenZero = true })
	narrowLow := narrow.Intermediate("too deep", nil)
	noCA := root.Leaf("no-ca", nil)
	caGroup := provisioning.Group{ID: "g-ca", ETag: "1", Attestation: provisioning.SignedBy(root.Cert, nil), Terms: on}
	disabledCA := caGroup
	disabledCA.Enabled = false
	midGroup := provisioning.Group{ID: "g-mid", ETag: "2", Attestation: provisioning.SignedBy(mid.Cert, nil), Terms: on}
	shownBy := func(chain ...*x509.Certificate) provisioning.Credentials {
		return provisioning.Credentials{RegistrationID: "dev-1", Chain: chain}
	}

	key1, key2, groupKey := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	keyed := &provisioning.Enrollment{ID: "dev-1", ETag: "e", Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: key1, SecondaryKey: key2}, Terms: on}
	off := *keyed
	off.Enabled = false
	keyGroup := provisioning.Group{ID: "g-key", ETag: "3", Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: groupKey, SecondaryKey: key2}, Terms: on}
	keyGroupOff := keyGroup
	keyGroupOff.Enabled = false
	const resource = "0ne1/registrations/dev-1"
	token := func(key []byte, resource, skn string, in time.Duration) string {
		return sas.Sign(resource, skn, key, now.Add(in))
	}
	signed := func(tok string) provisioning.Credentials {
		return provisioning.Credentials{RegistrationID: "Dev-1", Token: tok}
	}
	stale := token(key1, resource, "registration", -time.Minute)
	poll := func(c provisioning.Credentials, op string) provisioning.Credentials { c.Operation = op; return c }
	began := &provisioning.Registration{ID: "dev-1", Operation: "op-2", PrevOperation: "op-1",
		Keys: provisioning.Keys{Token: provisioning.TokenHash(stale), PrevToken: provisioning.TokenHash("other")}}

	client := root.Leaf("dev-1", nil).Leaf
	renewed := root.Leaf("dev-1", nil).Leaf
	expired := leafOf(root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	early := leafOf(root, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })
	pinned := func(primary, secondary *x509.Certificate) *provisioning.Enrollment {
		e := &provisioning.Enrollment{ID: "dev-1", ETag: "e", Attestation: provisioning.Attestation{Kind: provisioning.X509Client, Primary: primary.Raw}, Terms: on}
		if secondary != nil {
			e.Secondary = secondary.Raw
		}
		return e
	}
	ownCA := &provisioning.Enrollment{ID: "dev-1", ETag: "e", Attestation: provisioning.SignedBy(root.Cert, nil), Terms: on}

	ek, ekDigest := publicOf(t)
	srk, _ := publicOf(t)
	ek2, _ := publicOf(t)
	tpm := &provisioning.Enrollment{ID: "dev-1", ETag: "e", Attestation: provisioning.Attestation{Kind: provisioning.TPM, TPM: provisioning.TPMKeys{Endorsement: ek, StorageRoot: srk}}, Terms: on}
	anySRK := *tpm
	anySRK.Attestation.TPM.StorageRoot = nil
	keys := &provisioning.TPMKeys{Endorsement: ek, StorageRoot: srk}
	hardware := func(k *provisioning.TPMKeys, tok string) provisioning.Credentials {
		return provisioning.Credentials{RegistrationID: "dev-1", TPM: k, Token: tok}
	}
	answer := func(op string, ago time.Duration) string {
		return token(provisioning.ChallengeKey("dev-1", keys, op, now.Add(-ago)), resource, "registration", time.Hour)
	}
	used := &provisioning.Registration{ID: "dev-1", Kind: provisioning.TPM, Operation: "op-2", PrevOperation: "op-1", Thumbprint: ekDigest,
		Keys: provisioning.Keys{Token: provisioning.TokenHash(answer("op-1", 0))}}

	unitGroup := provisioning.Group{ID: "g-units", ETag: "4", Attestation: provisioning.Attestation{Kind: provisioning.TPMUnits,
		Units: provisioning.Units{Account: "acme", Order: "o-1"}}, Terms: on}
	lotGroup := unitGroup
	lotGroup.Units = provisioning.Units{Account: "acme", Lots: []cradle.LotID{"l-1"}}
	unitGroupOff := unitGroup
	unitGroupOff.Enabled = false
	unit := func(change func(*provisioning.Unit)) *provisioning.Unit {
		u := &provisioning.Unit{Device: "dev-1", Account: "acme", Order: "o-1", Lot: "l-1", State: cradle.Accepted}
		if change != nil {
			change(u)
		}
		return u
	}
	usedUnit := *used
	usedUnit.Kind = provisioning.TPMUnits

	type caseOf = provisioning.Case
	groups := func(g ...provisioning.Group) []provisioning.Group { return g }
	for _, c := range []struct {
		name string
		provisioning.Case
		want string // part of the refusal; "" is admission, "challenge" a challenge
	}{
		{"CA: signed by it", caseOf{Shown: shownBy(byRoot), Groups: groups(caGroup)}, ""},
		{"CA: through one intermediate", caseOf{Shown: shownBy(byMid, mid.Cert), Groups: groups(caGroup)}, ""},
		{"CA: through two", caseOf{Shown: shownBy(byLow, low.Cert, mid.Cert), Groups: groups(caGroup)}, ""},
		{"CA: in any order, with the root", caseOf{Shown: shownBy(byLow, root.Cert, mid.Cert, low.Cert), Groups: groups(caGroup)}, ""},
		{"CA: the second intermediate is another group's", caseOf{Shown: shownBy(byLow, low.Cert), Groups: groups(caGroup, midGroup)}, ""},
		{"intermediate: signed by it, no chain sent", caseOf{Shown: shownBy(byMid), Groups: groups(midGroup)}, ""},
		{"CA: secondary", caseOf{Shown: shownBy(byRoot), Groups: groups(provisioning.Group{ID: "g", Attestation: provisioning.SignedBy(stranger.Cert, root.Cert), Terms: on})}, ""},
		{"CA: nothing sent", caseOf{Shown: shownBy(), Groups: groups(caGroup)}, "no client certificate was sent"},
		{"CA: leaf alone, intermediate missing", caseOf{Shown: shownBy(byMid), Groups: groups(caGroup)}, "signing certificate not registered"},
		{"CA: chain with a gap", caseOf{Shown: shownBy(byLow, low.Cert), Groups: groups(caGroup)}, "chain incomplete"},
		{"CA: whole chain to a root that is not registered", caseOf{Shown: shownBy(byLow, low.Cert, mid.Cert, root.Cert), Groups: groups(provisioning.Group{ID: "s", Attestation: provisioning.SignedBy(stranger.Cert, nil), Terms: on})}, "CA not registered"},
		{"CA: stranger", caseOf{Shown: shownBy(leafOf(stranger, nil)), Groups: groups(caGroup)}, "signing certificate not registered"},
		{"CA: stranger that brings itself along", caseOf{Shown: shownBy(leafOf(stranger, nil), stranger.Cert), Groups: groups(caGroup)}, "CA not registered"},
		{"CA: another root of the same name", caseOf{Shown: shownBy(leafOf(fakeRoot, nil)), Groups: groups(caGroup)}, "of that name did not sign"},
		{"CA: another root of the same name brings the real one", caseOf{Shown: shownBy(leafOf(fakeRoot, nil), root.Cert), Groups: groups(caGroup)}, "did not sign the certificate"},
		{"CA: intermediate expired", caseOf{Shown: shownBy(leafOf(oldMid, nil), oldMid.Cert), Groups: groups(caGroup)}, "expired at"},
		{"CA: path length", caseOf{Shown: shownBy(leafOf(narrowLow, nil), narrowLow.Cert, narrow.Cert), Groups: groups(caGroup)}, "too many intermediates"},
		{"CA: a device's certificate as CA", caseOf{Shown: shownBy(leafOf(provisioningtest.Device(t, noCA), nil), noCA.Leaf), Groups: groups(caGroup)}, "did not sign the certificate"},
		{"CA: the CA itself as device", caseOf{Shown: shownBy(root.Cert), Groups: groups(caGroup)}, "CA certificate"},
		{"CA: too many certificates", caseOf{Shown: shownBy(byMid, mid.Cert, mid.Cert, mid.Cert, mid.Cert, mid.Cert, mid.Cert, mid.Cert, mid.Cert), Groups: groups(caGroup)}, "9 certificates"},
		{"CA: wrong name", caseOf{Shown: shownBy(root.Leaf("dev-2", nil).Leaf), Groups: groups(caGroup)}, "certificate is for \"dev-2\""},
		{"CA: wrong name through a chain", caseOf{Shown: shownBy(mid.Leaf("dev-2", nil).Leaf, mid.Cert), Groups: groups(caGroup)}, "certificate is for \"dev-2\""},
		{"CA: two names", caseOf{Shown: shownBy(leafOf(root, func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "dev-1"}, {Type: []int{2, 5, 4, 3}, Value: "dev-2"}}
		})), Groups: groups(caGroup)}, "2 common names"},
		{"CA: expired", caseOf{Shown: shownBy(expired), Groups: groups(caGroup)}, "expired at"},
		{"CA: expired, through a chain", caseOf{Shown: shownBy(leafOf(mid, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), mid.Cert), Groups: groups(caGroup)}, "expired"},
		{"CA: not yet valid", caseOf{Shown: shownBy(early), Groups: groups(caGroup)}, "not valid before"},
		{"CA: for servers only", caseOf{Shown: shownBy(leafOf(root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), Groups: groups(caGroup)}, "clientAuth"},
		{"CA: for servers only, through a chain", caseOf{Shown: shownBy(leafOf(mid, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), mid.Cert), Groups: groups(caGroup)}, "clientAuth"},
		{"CA: group disabled", caseOf{Shown: shownBy(byRoot), Groups: groups(disabledCA)}, "group \"g-ca\" is disabled"},
		{"CA: an individual enrolment beats the group", caseOf{Shown: shownBy(byRoot), Groups: groups(caGroup), Individual: keyed}, "wants a SAS token"},
		{"CA: a disabled individual enrolment blocks the member", caseOf{Shown: shownBy(byRoot), Groups: groups(caGroup), Individual: func() *provisioning.Enrollment { e := *pinned(byRoot, nil); e.Enabled = false; return &e }()}, "enrolment \"dev-1\" is disabled"},

		{"CA: a disabled one of another attestation, too", caseOf{Shown: shownBy(byRoot), Groups: groups(caGroup), Individual: &off}, "enrolment \"dev-1\" is disabled"},
		{"CA: a stranger is not told that there is one", caseOf{Shown: shownBy(leafOf(stranger, nil)), Groups: groups(caGroup), Individual: &off}, "wants a SAS token"},
		{"derived: a disabled one of another attestation", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-1"), resource, "registration", time.Hour)), Groups: groups(keyGroup),
			Individual: func() *provisioning.Enrollment { e := *pinned(byRoot, nil); e.Enabled = false; return &e }()}, "enrolment \"dev-1\" is disabled"},

		{"client: primary", caseOf{Shown: shownBy(client), Individual: pinned(client, nil)}, ""},
		{"client: secondary", caseOf{Shown: shownBy(renewed), Individual: pinned(client, renewed)}, ""},
		{"client: renewed, not enrolled", caseOf{Shown: shownBy(renewed), Individual: pinned(client, nil)}, "is not the one of individual enrolment"},
		{"client: a CA's other device", caseOf{Shown: shownBy(leafOf(root, nil), root.Cert), Individual: pinned(client, nil), Groups: groups(caGroup)}, "is not the one"},
		{"client: expired", caseOf{Shown: shownBy(expired), Individual: pinned(expired, nil)}, "expired at"},
		{"client: not yet valid", caseOf{Shown: shownBy(early), Individual: pinned(early, nil)}, "not valid before"},
		{"client: another name in it", caseOf{Shown: shownBy(noCA.Leaf), Individual: pinned(noCA.Leaf, nil)}, "certificate is for \"no-ca\""},
		{"client: none", caseOf{Shown: signed(token(key1, resource, "registration", time.Hour)), Individual: pinned(client, nil)}, "wants a client certificate"},
		{"own CA: signed by it", caseOf{Shown: shownBy(byRoot), Individual: ownCA}, ""},
		{"own CA: through a chain", caseOf{Shown: shownBy(byLow, low.Cert, mid.Cert), Individual: ownCA}, ""},
		{"own CA: the CA itself as device", caseOf{Shown: provisioning.Credentials{RegistrationID: "root", Chain: []*x509.Certificate{root.Cert}}, Individual: ownCA}, "CA certificate"},
		{"own CA: stranger", caseOf{Shown: shownBy(leafOf(stranger, nil)), Individual: ownCA, Groups: groups(provisioning.Group{ID: "s", Attestation: provisioning.SignedBy(stranger.Cert, nil), Terms: on})}, "not registered"},

		{"key: primary", caseOf{Shown: signed(token(key1, resource, "registration", time.Hour)), Individual: keyed}, ""},
		{"key: secondary", caseOf{Shown: signed(token(key2, resource, "registration", time.Hour)), Individual: keyed}, ""},
		{"key: case of the resource does not matter", caseOf{Shown: signed(token(key1, "0NE1/Registrations/DEV-1", "registration", time.Hour)), Individual: keyed}, ""},
		{"key: wrong", caseOf{Shown: signed(token(groupKey, resource, "registration", time.Hour)), Individual: keyed}, "matches neither key"},
		{"key: expired", caseOf{Shown: signed(stale), Individual: keyed}, "expired at"},
		{"key: another device's token, replayed", caseOf{Shown: signed(token(key1, "0ne1/registrations/dev-2", "registration", time.Hour)), Individual: keyed}, "token is for"},
		{"key: another scope's", caseOf{Shown: signed(token(key1, "0ne2/registrations/dev-1", "registration", time.Hour)), Individual: keyed}, "token is for"},
		{"key: for all devices", caseOf{Shown: signed(token(key1, "0ne1/registrations", "registration", time.Hour)), Individual: keyed}, "token is for"},
		{"key: for the whole scope", caseOf{Shown: signed(token(key1, "0ne1", "registration", time.Hour)), Individual: keyed}, "token is for"},
		{"key: policy", caseOf{Shown: signed(token(key1, resource, "provisioningserviceowner", time.Hour)), Individual: keyed}, "names policy"},
		{"key: no token at all", caseOf{Shown: signed("Bearer x"), Individual: keyed}, "not a SharedAccessSignature"},
		{"key: disabled", caseOf{Shown: signed(token(key1, resource, "registration", time.Hour)), Individual: &off}, "is disabled"},
		{"key: poll with the expired token that began it", caseOf{Shown: poll(signed(stale), "op-2"), Individual: keyed, Present: began}, ""},
		{"key: poll of the operation before with it", caseOf{Shown: poll(signed(stale), "op-1"), Individual: keyed, Present: began}, "expired at"},
		{"key: poll of an unknown operation with it", caseOf{Shown: poll(signed(stale), "op-3"), Individual: keyed, Present: began}, "expired at"},
		{"key: poll with another expired token", caseOf{Shown: poll(signed(token(key1, resource, "registration", -time.Hour)), "op-2"), Individual: keyed, Present: began}, "expired at"},
		{"key: registering with it", caseOf{Shown: signed(stale), Individual: keyed, Present: began}, "expired at"},
		{"key: poll with it after the key was changed", caseOf{Shown: poll(signed(stale), "op-2"), Present: began,
			Individual: &provisioning.Enrollment{ID: "dev-1", Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: key2, SecondaryKey: key2}, Terms: on}}, "matches neither key"},

		{"derived: primary", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-1"), resource, "registration", time.Hour)), Groups: groups(caGroup, keyGroup)}, ""},
		{"derived: secondary", caseOf{Shown: signed(token(dps.DeviceKey(key2, "DEV-1"), resource, "registration", time.Hour)), Groups: groups(caGroup, keyGroup)}, ""},
		{"derived: for another device", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-2"), resource, "registration", time.Hour)), Groups: groups(keyGroup)}, "matches no key"},
		{"derived: the group's key itself", caseOf{Shown: signed(token(groupKey, resource, "registration", time.Hour)), Groups: groups(keyGroup)}, "key of enrolment group \"g-key\" itself"},
		{"derived: no such group", caseOf{Shown: signed(token(key1, resource, "registration", time.Hour)), Groups: groups(caGroup)}, "not enrolled"},
		{"derived: expired", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-1"), resource, "registration", -time.Hour)), Groups: groups(keyGroup)}, "expired at"},
		{"derived: disabled", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-1"), resource, "registration", time.Hour)), Groups: groups(keyGroupOff)}, "\"g-key\" is disabled"},
		{"derived: its own enrolment has another key", caseOf{Shown: signed(token(dps.DeviceKey(groupKey, "dev-1"), resource, "registration", time.Hour)), Groups: groups(keyGroup), Individual: keyed}, "matches neither key"},

		{"TPM: first call", caseOf{Shown: hardware(keys, ""), Individual: tpm}, "challenge"},
		{"TPM: second call", caseOf{Shown: hardware(keys, answer("", 0)), Individual: tpm}, ""},
		{"TPM: second call, ten minutes later", caseOf{Shown: hardware(keys, answer("", 10*time.Minute)), Individual: tpm}, ""},
		{"TPM: a storage root key that is not enrolled", caseOf{Shown: hardware(&provisioning.TPMKeys{Endorsement: ek, StorageRoot: ek2}, ""), Individual: &anySRK}, "challenge"},
		{"TPM: again, with the token that began it (its answer was lost)", caseOf{Shown: hardware(keys, answer("op-1", 0)), Individual: tpm, Present: used}, ""},
		{"TPM: challenge used before, another token", caseOf{Shown: hardware(keys, token(provisioning.ChallengeKey("dev-1", keys, "op-1", now), resource, "registration", 2*time.Hour)), Individual: tpm, Present: used}, "replayed"},
		{"TPM: challenge too old", caseOf{Shown: hardware(keys, answer("", 40*time.Minute)), Individual: tpm}, "challenge that this SAS token answers has expired"},
		{"TPM: token expired", caseOf{Shown: hardware(keys, token(provisioning.ChallengeKey("dev-1", keys, "", now), resource, "registration", -time.Minute)), Individual: tpm}, "expired at"},
		{"TPM: not signed by the key sent", caseOf{Shown: hardware(keys, token(key1, resource, "registration", time.Hour)), Individual: tpm}, "not signed with a key that this service sent"},
		{"TPM: challenge of another device", caseOf{Shown: hardware(keys, token(provisioning.ChallengeKey("dev-2", keys, "", now), resource, "registration", time.Hour)), Individual: tpm}, "not signed with a key"},
		{"TPM: challenge of another storage root key", caseOf{Individual: &anySRK, Shown: hardware(keys,
			token(provisioning.ChallengeKey("dev-1", &provisioning.TPMKeys{Endorsement: ek, StorageRoot: ek2}, "", now), resource, "registration", time.Hour))}, "not signed with a key"},
		{"TPM: token for another device", caseOf{Shown: hardware(keys, token(provisioning.ChallengeKey("dev-1", keys, "", now), "0ne1/registrations/dev-2", "registration", time.Hour)), Individual: tpm}, "token is for"},
		{"TPM: another endorsement key", caseOf{Shown: hardware(&provisioning.TPMKeys{Endorsement: ek2, StorageRoot: srk}, ""), Individual: tpm}, "endorsement key is not the one"},
		{"TPM: another storage root key", caseOf{Shown: hardware(&provisioning.TPMKeys{Endorsement: ek, StorageRoot: ek2}, ""), Individual: tpm}, "storage root key is not the one"},
		{"TPM: no storage root key", caseOf{Shown: hardware(&provisioning.TPMKeys{Endorsement: ek}, ""), Individual: &anySRK}, "storage root key: "},
		{"TPM: broken endorsement key", caseOf{Shown: hardware(&provisioning.TPMKeys{Endorsement: ek[:40], StorageRoot: srk}, ""), Individual: tpm}, "endorsement key: "},
		{"TPM: nothing", caseOf{Shown: provisioning.Credentials{RegistrationID: "dev-1"}, Individual: tpm}, "wants a TPM's"},
		{"TPM: poll with the token that began it", caseOf{Shown: poll(hardware(nil, answer("op-1", 0)), "op-2"), Individual: tpm, Present: used}, ""},
		{"TPM: poll with another token", caseOf{Shown: poll(hardware(nil, answer("op-2", 0)), "op-2"), Individual: tpm, Present: used}, "did not begin"},
		{"TPM: poll of another operation", caseOf{Shown: poll(hardware(nil, answer("op-1", 0)), "op-9"), Individual: tpm, Present: used}, "did not begin"},
		{"TPM: poll without a token", caseOf{Shown: poll(hardware(nil, ""), "op-2"), Individual: tpm, Present: used}, "wants a TPM's"},
		{"TPM: disabled", caseOf{Shown: hardware(keys, answer("", 0)), Individual: func() *provisioning.Enrollment { e := *tpm; e.Enabled = false; return &e }()}, "is disabled"},

		{"units: first call", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(nil)}, "challenge"},
		{"units: of the order", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(nil)}, ""},
		{"units: of the lot", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(lotGroup), Unit: unit(nil)}, ""},
		{"units: a genuine TPM that is no unit", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup)}, "no TPM group names a unit"},
		{"units: of another order", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.Order = "o-2" })}, "that no enrolment group names"},
		{"units: of another lot", caseOf{Shown: hardware(keys, ""), Groups: groups(lotGroup), Unit: unit(func(u *provisioning.Unit) { u.Lot = "l-2" })}, "that no enrolment group names"},
		{"units: of another account", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.Account = "beta" })}, "that no enrolment group names"},
		{"units: under another unit's name", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.Device = "dev-2" })}, "the unit with this TPM is \"dev-2\""},
		{"units: revoked", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.State = cradle.Revoked })}, "is revoked"},
		{"units: suspended", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.State = cradle.Suspended })}, "is suspended"},
		{"units: a stranger with the public key of a revoked unit learns nothing", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(func(u *provisioning.Unit) { u.State = cradle.Revoked })}, "challenge"},
		{"units: group disabled", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroupOff), Unit: unit(nil)}, "\"g-units\" is disabled"},
		{"units: wrong key", caseOf{Shown: hardware(keys, token(key1, resource, "registration", time.Hour)), Groups: groups(unitGroup), Unit: unit(nil)}, "not signed with a key"},
		{"units: poll", caseOf{Shown: poll(hardware(nil, answer("op-1", 0)), "op-2"), Groups: groups(unitGroup), Unit: unit(nil), Present: &usedUnit}, ""},
		{"units: poll after it was revoked", caseOf{Shown: poll(hardware(nil, answer("op-1", 0)), "op-2"), Groups: groups(unitGroup), Present: &usedUnit,
			Unit: unit(func(u *provisioning.Unit) { u.State = cradle.Revoked })}, "is revoked"},
		{"units: a disabled enrolment of another attestation, first call", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(nil), Individual: &off}, "challenge"},
		{"units: then it says what bars the unit", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(nil), Individual: &off}, "enrolment \"dev-1\" is disabled"},
		{"units: barred, who has the public key alone is not told", caseOf{Shown: hardware(keys, token(key2, resource, "registration", time.Hour)), Groups: groups(unitGroup), Unit: unit(nil),
			Individual: func() *provisioning.Enrollment { e := *pinned(byRoot, nil); e.Enabled = false; return &e }()}, "wants a client certificate"},
		{"units: barred, a TPM that is no unit", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Individual: &off}, "wants a SAS token"},
		{"units: barred by the enrolment of another TPM", caseOf{Shown: hardware(keys, answer("", 0)), Groups: groups(unitGroup), Unit: unit(nil),
			Individual: func() *provisioning.Enrollment { e := *tpm; e.TPM.Endorsement, e.Enabled = ek2, false; return &e }()}, "enrolment \"dev-1\" is disabled"},
		{"units: its own enrolment decides", caseOf{Shown: hardware(keys, ""), Groups: groups(unitGroup), Unit: unit(nil), Individual: keyed}, "wants a SAS token"},

		{"name: not a registration id", caseOf{Shown: provisioning.Credentials{RegistrationID: "dev 1", Chain: []*x509.Certificate{byRoot}}, Groups: groups(caGroup)}, "registration id \"dev 1\""},
	} {
		if c.Now.IsZero() {
			c.Now = now
		}
		got, err := provisioning.Decide(c.Case)
		var challenge *provisioning.TPMChallenge
		switch {
		case c.want == "challenge":
			if !errors.As(err, &challenge) || len(challenge.AuthenticationKey) == 0 || challenge.KeyName != "registration" {
				t.Errorf("%s: %v, want a challenge", c.name, err)
			}
		case c.want == "":
			if err != nil {
				t.Errorf("%s: refused: %v", c.name, err)
			} else if got.ID != "dev-1" || (got.Group == "") != (c.Individual != nil) {
				t.Errorf("%s: admitted as %+v", c.name, got)
			}
		case err == nil:
			t.Errorf("%s: admitted, want %q", c.name, c.want)
		default:
			detail, hint := cradle.Public(err)
			kind := cradle.KindOf(err)
			if kind != cradle.Unauthorized && !strings.HasPrefix(c.name, "name:") || !strings.Contains(detail, c.want) {
				t.Errorf("%s: %s %q, want %q", c.name, kind, detail, c.want)
			}
			if hint == "" && !strings.Contains("names policy|not a SharedAccessSignature|2 common names|CA certificate|clientAuth|too many intermediates|registration id \"dev 1\"|", c.want+"|") {
				t.Errorf("%s: %q says nothing about how to mend it", c.name, detail)
			}
		}
	}
}

// A unit whose lot is not accepted is admitted, and waits.
func TestUnitWaits(t *testing.T) {
	ek, _ := publicOf(t)
	srk, _ := publicOf(t)
	keys := &provisioning.TPMKeys{Endorsement: ek, StorageRoot: srk}
	now := time.Now()
	c := provisioning.Case{Now: now, Shown: provisioning.Credentials{RegistrationID: "dev-1", TPM: keys,
		Token: sas.Sign("0ne1/registrations/dev-1", "registration", provisioning.ChallengeKey("dev-1", keys, "", now), now.Add(time.Hour))},
		Groups: []provisioning.Group{{ID: "g", Attestation: provisioning.Attestation{Kind: provisioning.TPMUnits, Units: provisioning.Units{Account: "acme", Order: "o"}}, Terms: provisioning.Terms{Enabled: true}}},
		Unit:   &provisioning.Unit{Device: "dev-1", Account: "acme", Order: "o", Lot: "l-7", State: cradle.Made}}
	got, err := provisioning.Decide(c)
	if err != nil || !strings.Contains(got.Waits, "l-7") {
		t.Errorf("lot not accepted: %+v %v", got, err)
	}
	c.Unit.Lot = ""
	if got, err = provisioning.Decide(c); err != nil || !strings.Contains(got.Waits, "not closed") {
		t.Errorf("lot not closed: %+v %v", got, err)
	}
	c.Unit.State = cradle.Active
	if got, err = provisioning.Decide(c); err != nil || got.Waits != "" {
		t.Errorf("active: %+v %v", got, err)
	}
}

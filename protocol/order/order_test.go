package order_test

import (
	"bytes"
	"crypto/ecdsa"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/settings"
)

var start = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func newCert(t testing.TB, ca bool) string {
	t.Helper()
	tmpl := testca.CA("test root")
	tmpl.IsCA, tmpl.NotBefore, tmpl.NotAfter = ca, start, start.AddDate(10, 0, 0)
	return testca.New(t, tmpl, nil).PEM()
}

const file = `
model = "Meter 7"
quantity = 100
serial_prefix = "AX-"
serial_first = "0001"
serial_last = "0500"
not_before = 2026-03-01T00:00:00Z
not_after = 2026-09-01T00:00:00Z
tiers = ["discrete-tpm", "firmware-tpm"]
tpm_makers = ["infineon", "amd"]
ek_types = ["p256", "rsa2048"]
provisioning_endpoint = "https://dps.example.com:8443"
id_scope = "0ne00000001"
[agent]
telemetry_interval = "30s"
renewal_fraction = 0.5
`

// good is a complete order as `cradle order create` makes it.
func good(t testing.TB) *order.Order {
	t.Helper()
	o, err := order.ParseTOML([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	o.Account, o.OEM, o.ID = "acme", "makers", "ord-1"
	o.ProviderURL = "https://provider.example.com"
	o.ServicesAnchors, o.AccountAnchors = newCert(t, true), newCert(t, true)
	o.Complete(start)
	return o
}

func signed(t testing.TB, o *order.Order) (doc []byte, account, oem *ecdsa.PrivateKey) {
	t.Helper()
	account, oem = testca.Key(t), testca.Key(t)
	doc, err := order.Sign(o, account)
	if err != nil {
		t.Fatal(err)
	}
	if doc, err = order.Countersign(doc, oem); err != nil {
		t.Fatal(err)
	}
	return doc, account, oem
}

func TestSignedOrderReadsBack(t *testing.T) {
	o := good(t)
	doc, account, oem := signed(t, o)
	got, err := order.Verify(doc, &account.PublicKey, &oem.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := o.Encode()
	b, _ := got.Encode()
	if !bytes.Equal(a, b) || got.Digest() != o.Digest() {
		t.Errorf("got %s, want %s", b, a)
	}
	if !got.AutoAccept || got.InstallLDevID || got.Naming != order.DefaultNaming || got.KeyAlgorithm != order.KeyECDSAP256 ||
		got.Agent.TelemetryInterval != settings.Duration(30*time.Second) || got.Class() != cradle.Production {
		t.Errorf("defaults are wrong: %+v", got)
	}
	if p, err := order.Peek(doc); err != nil || p.Digest() != o.Digest() {
		t.Errorf("Peek: %v", err)
	}
	// Countersigning again replaces the countersignature.
	again, err := order.Countersign(doc, oem)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := order.Verify(again, &account.PublicKey, &oem.PublicKey); err != nil {
		t.Error(err)
	}
}

func TestCompleteFillsIn(t *testing.T) {
	o := &order.Order{}
	o.Complete(time.Date(2026, 5, 1, 2, 3, 4, 5, time.FixedZone("x", 3600)))
	if !strings.HasPrefix(string(o.ID), "ord-") || cradle.CheckID("order", string(o.ID)) != nil {
		t.Errorf("id %q", o.ID)
	}
	if want := time.Date(2026, 5, 1, 1, 3, 4, 0, time.UTC); o.NotBefore != want || o.NotAfter != want.AddDate(1, 0, 0) {
		t.Errorf("dates %v %v", o.NotBefore, o.NotAfter)
	}
	if len(o.EKTypes) != len(order.EKTypes) {
		t.Errorf("EK types %v", o.EKTypes)
	}
}

func TestParseTOMLRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":       {"quantitty = 3", `unknown key "quantitty"`},
		"quantity as text":  {`quantity = "3"`, `line 1: "quantity": it is text in quotes, not a whole number`},
		"unknown agent key": {"[agent]\ninterval = \"3s\"", `unknown key "agent.interval"`},
		"wrong type":        {`quantity = "3"`, "order file"},
		"not TOML":          {"quantity: 3", "order file"},
		"signer's key":      {`account_key = "x"`, "unknown key"},
		"duration":          {"[agent]\ntelemetry_interval = \"3 seconds\"", "order file"},
		"too large":         {"#" + strings.Repeat("x", order.MaxSize), "over"},
	} {
		_, err := order.ParseTOML([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
			t.Errorf("%s: kind %v", name, k)
		}
	}
}

// Every field that is wrong by itself refuses the signature, with the field's name and a hint.
func TestCheck(t *testing.T) {
	leaf := newCert(t, false)
	for name, c := range map[string]struct {
		change func(*order.Order)
		want   string
	}{
		"version":               {func(o *order.Order) { o.Version = 2 }, "version 2"},
		"id":                    {func(o *order.Order) { o.ID = "Ord" }, "order id"},
		"account":               {func(o *order.Order) { o.Account = "" }, "account"},
		"oem":                   {func(o *order.Order) { o.OEM = "a b" }, "oem"},
		"model empty":           {func(o *order.Order) { o.Model = "" }, "model"},
		"model unprintable":     {func(o *order.Order) { o.Model = "a\x1b[2J" }, "model"},
		"quantity zero":         {func(o *order.Order) { o.Quantity = 0 }, "quantity 0"},
		"quantity huge":         {func(o *order.Order) { o.Quantity = order.MaxQuantity + 1 }, "quantity"},
		"quantity over serials": {func(o *order.Order) { o.Quantity = 501 }, "more than the 500 serial numbers"},
		"prefix":                {func(o *order.Order) { o.SerialPrefix = "A/" }, "serial_prefix"},
		"prefix underscore":     {func(o *order.Order) { o.SerialPrefix = "A_" }, "serial_prefix"},
		"prefix long":           {func(o *order.Order) { o.SerialPrefix = strings.Repeat("a", 62) }, "serial_prefix"},
		"first":                 {func(o *order.Order) { o.SerialFirst = "00a1" }, "serial_first"},
		"first signed":          {func(o *order.Order) { o.SerialFirst = "+001" }, "serial_first"},
		"first empty":           {func(o *order.Order) { o.SerialFirst = "" }, "serial_first"},
		"digits too many":       {func(o *order.Order) { o.SerialFirst = strings.Repeat("0", 19) }, "serial_first"},
		"last shorter":          {func(o *order.Order) { o.SerialLast = "500" }, "equally many digits"},
		"last below":            {func(o *order.Order) { o.SerialFirst = "0501" }, "below"},
		"dates swapped":         {func(o *order.Order) { o.NotAfter = o.NotBefore }, "not_after"},
		"dates fraction":        {func(o *order.Order) { o.NotAfter = o.NotAfter.Add(1) }, "whole seconds"},
		"dates zone":            {func(o *order.Order) { o.NotAfter = o.NotAfter.In(time.FixedZone("", 60)) }, "UTC"},
		"dates missing":         {func(o *order.Order) { o.NotBefore = time.Time{} }, "2000"},
		"too long":              {func(o *order.Order) { o.NotAfter = o.NotBefore.AddDate(11, 0, 0) }, "ten years"},
		"no tier":               {func(o *order.Order) { o.Tiers = nil }, "tiers"},
		"tier unknown":          {func(o *order.Order) { o.Tiers = []cradle.Tier{"gold"} }, "gold"},
		"tier twice":            {func(o *order.Order) { o.Tiers = []cradle.Tier{"discrete-tpm", "discrete-tpm"} }, "twice"},
		"two classes":           {func(o *order.Order) { o.Tiers = []cradle.Tier{"discrete-tpm", "simulator"} }, "two classes"},
		"software":              {func(o *order.Order) { o.Tiers = []cradle.Tier{"software-key"} }, "software-key"},
		"no maker":              {func(o *order.Order) { o.TPMMakers = nil }, "tpm_makers"},
		"maker name":            {func(o *order.Order) { o.TPMMakers = []cradle.MakerID{"In fineon"} }, "TPM maker"},
		"no EK type":            {func(o *order.Order) { o.EKTypes = nil }, "ek_types"},
		"EK type":               {func(o *order.Order) { o.EKTypes = []string{"rsa1024"} }, "rsa1024"},
		"key algorithm":         {func(o *order.Order) { o.KeyAlgorithm = "rsa2048" }, "key_algorithm"},
		"naming constant":       {func(o *order.Order) { o.Naming = "{account}" }, "{serial}"},
		"naming unknown":        {func(o *order.Order) { o.Naming = "{serial}-{colour}" }, "device id"},
		"naming blank":          {func(o *order.Order) { o.Naming = "{model}-{serial}" }, "device id"}, // "Meter 7" has one
		"naming long":           {func(o *order.Order) { o.Naming = strings.Repeat("x", 60) + "{serial}" }, "device id"},
		"provider http":         {func(o *order.Order) { o.ProviderURL = "http://x" }, "provider_url"},
		"provider slash":        {func(o *order.Order) { o.ProviderURL = "https://x/" }, "provider_url"},
		"provider user":         {func(o *order.Order) { o.ProviderURL = "https://u:p@x" }, "provider_url"},
		"provider port":         {func(o *order.Order) { o.ProviderURL = "https://x:123456" }, "provider_url"},
		"endpoint":              {func(o *order.Order) { o.ProvisioningEndpoint = "" }, "provisioning_endpoint"},
		"scope":                 {func(o *order.Order) { o.IDScope = "a/b" }, "id_scope"},
		"services anchors":      {func(o *order.Order) { o.ServicesAnchors = "" }, "services_anchors"},
		"services text":         {func(o *order.Order) { o.ServicesAnchors = "x\n" + o.ServicesAnchors }, "services_anchors"},
		"account anchors":       {func(o *order.Order) { o.AccountAnchors = leaf }, "account_anchors"},
		"anchors trailing":      {func(o *order.Order) { o.AccountAnchors += "x" }, "account_anchors"},
		"interval":              {func(o *order.Order) { o.Agent.TelemetryInterval = 1 }, "telemetry_interval"},
		"fraction":              {func(o *order.Order) { o.Agent.RenewalFraction = 0.99 }, "renewal_fraction"},
	} {
		o := good(t)
		c.change(o)
		_, err := order.Sign(o, testca.Key(t))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		} else if k := cradle.KindOf(err); k != cradle.Invalid {
			t.Errorf("%s: kind %v", name, k)
		}
	}
}

// Every field of an order is enforced where a unit is made (DESIGN §3): one fact off, one reason.
func TestCheckUnit(t *testing.T) {
	o := good(t)
	in := order.Facts{EKMaker: "amd", Tier: cradle.FirmwareTPM, EKType: "p256", Serial: "AX-0500", KeyAlgorithm: "ecdsa-p256", Used: 99}
	end := o.NotAfter
	for name, c := range map[string]struct {
		now    time.Time
		change func(*order.Facts)
		want   string
	}{
		"inside":             {start, func(*order.Facts) {}, ""},
		"last second":        {end.Add(-1), func(*order.Facts) {}, ""},
		"first serial":       {start, func(f *order.Facts) { f.Serial = "AX-0001" }, ""},
		"too early":          {start.Add(-1), func(*order.Facts) {}, "not_before"},
		"expired":            {end, func(*order.Facts) {}, "not_after"},
		"maker":              {start, func(f *order.Facts) { f.EKMaker = "intel" }, "tpm_makers"},
		"no maker":           {start, func(f *order.Facts) { f.EKMaker = "" }, "tpm_makers"},
		"tier":               {start, func(f *order.Facts) { f.Tier = cradle.VirtualTPM }, "tiers"},
		"simulator":          {start, func(f *order.Facts) { f.Tier = cradle.Simulator }, "tiers"},
		"EK type":            {start, func(f *order.Facts) { f.EKType = "p384" }, "ek_types"},
		"key algorithm":      {start, func(f *order.Facts) { f.KeyAlgorithm = "ecdsa-p384" }, "key_algorithm"},
		"used up":            {start, func(f *order.Facts) { f.Used = 100 }, "quantity"},
		"serial above":       {start, func(f *order.Facts) { f.Serial = "AX-0501" }, "serial_range"},
		"serial below":       {start, func(f *order.Facts) { f.Serial = "AX-0000" }, "serial_range"},
		"serial prefix":      {start, func(f *order.Facts) { f.Serial = "AY-0001" }, "serial_range"},
		"serial prefix case": {start, func(f *order.Facts) { f.Serial = "ax-0001" }, "serial_range"},
		"serial digits":      {start, func(f *order.Facts) { f.Serial = "AX-00001" }, "serial_range"},
		"serial signed":      {start, func(f *order.Facts) { f.Serial = "AX-+001" }, "serial_range"},
		"serial other zero":  {start, func(f *order.Facts) { f.Serial = "AX-٠٠" }, "serial_range"}, // Arabic digits, same length in bytes
		"serial blank":       {start, func(f *order.Facts) { f.Serial = "AX-0001 " }, "serial_range"},
		"serial empty":       {start, func(f *order.Facts) { f.Serial = "" }, "serial_range"},
	} {
		f := in
		c.change(&f)
		got := o.CheckUnit(c.now, f)
		if c.want == "" {
			if len(got) != 0 || order.Refusal(o, got) != nil {
				t.Errorf("%s: got %v, want none", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Field != c.want || got[0].Detail == "" || got[0].Hint == "" {
			t.Errorf("%s: got %+v, want one for %s", name, got, c.want)
			continue
		}
		err := order.Refusal(o, got)
		if cradle.KindOf(err) != cradle.Forbidden || !strings.Contains(err.Error(), got[0].Detail) || cli.Hint(err) != got[0].Hint {
			t.Errorf("%s: refusal %v", name, err)
		}
	}
	// Everything off: every reason is told.
	if got := o.CheckUnit(end, order.Facts{Used: 1000}); len(got) != 7 {
		t.Errorf("all wrong: %d reasons %v, want 7", len(got), got)
	}
}

func TestDeviceName(t *testing.T) {
	for _, c := range []struct{ naming, serial, want string }{
		{"{account}-{serial}", "AX-0042", "acme-ax-0042"},
		{"{oem}.{order}.{serial}", "AX-0500", "makers.ord-1.ax-0500"},
		{"Line1_{serial}x", "AX-0001", "line1_ax-0001x"},
		{"{serial}{serial}", "AX-0001", "ax-0001ax-0001"},
		{"{account}-{serial}", "AX-0501", ""},
		{"{account}-{serial}", "{account}", ""},
	} {
		o := good(t)
		o.Naming = c.naming
		got, err := o.DeviceName(c.serial)
		if string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s of %s: got %q, %v, want %q", c.naming, c.serial, got, err, c.want)
		}
	}
}

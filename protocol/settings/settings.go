// Package settings is the file agent.toml: what the factory line writes into a unit and the device
// agent reads. It holds no secret. Unknown keys are refused, so that a misspelt setting is found at
// start and not in the field.
//
// The anchors are apart (DESIGN §2): Services verifies the TLS of the provider, the provisioning
// service and the hub; Account verifies what EST hands out. Each file is PEM and may hold several
// certificates, so that a roll can be prepared years before.
package settings

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/stricttoml"
)

// Agent is the content of agent.toml. Relative paths are relative to the file's own folder.
type Agent struct {
	Account  cradle.AccountID `toml:"account"`
	Device   cradle.DeviceID  `toml:"device"` // common name of every certificate of this unit
	Serial   string           `toml:"serial"` // the unit's serial number as printed on it
	TPM      string           `toml:"tpm"`    // device node or Unix socket of the TPM
	StateDir string           `toml:"state"`  // journal and operational keys' blobs; default "state"
	IDevID   string           `toml:"idevid"` // PEM file, IDevID certificate and its issuers; default "idevid.pem"
	Made     time.Time        `toml:"made"`   // when the line wrote this; a lower bound of the time

	Anchors      Anchors      `toml:"anchors"`
	Provider     Provider     `toml:"provider"`
	Provisioning Provisioning `toml:"provisioning"`
	Telemetry    Telemetry    `toml:"telemetry"`
	Renewal      Renewal      `toml:"renewal"`
}

// Anchors are PEM files.
type Anchors struct {
	Services string `toml:"services"` // default "services-anchors.pem"
	Account  string `toml:"account"`  // default "account-anchors.pem"
}

// Provider says where EST is.
type Provider struct {
	URL string `toml:"url"` // for example "https://est.example.com"; labels are appended
}

// Provisioning says where the provisioning service is.
type Provisioning struct {
	Endpoint string `toml:"endpoint"` // for example "https://dps.example.com"
	IDScope  string `toml:"id_scope"`
}

// Telemetry sets the agent's own numbered telemetry.
type Telemetry struct {
	Interval Duration `toml:"interval"` // between messages; default 10 s, 0.1 s to 24 h
}

// Renewal sets when certificates are renewed.
type Renewal struct {
	Fraction  float64 `toml:"fraction"`   // of the lifetime after which renewal begins; default 0.6, 0.1 to 0.9
	RotateKey *bool   `toml:"rotate_key"` // make a new key at each renewal; default true
}

// Duration is a time.Duration written as text, for example "10s".
type Duration time.Duration

// UnmarshalText parses time.ParseDuration's format.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText writes time.Duration's format.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Load reads, completes and checks the file; paths come back absolute or relative to the working directory.
func Load(file string) (*Agent, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "agent settings: %v", err).
			WithHint("give the agent.toml that the line wrote with --config")
	}
	a, err := Parse(b)
	if err != nil {
		return nil, cradle.Errorf(cradle.KindOf(err), "%s: %w", file, err).WithHint("mend that file, or take the one that the line wrote into the unit's folder")
	}
	dir := filepath.Dir(file)
	for _, p := range []*string{&a.StateDir, &a.IDevID, &a.Anchors.Services, &a.Anchors.Account} {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	if !filepath.IsAbs(a.TPM) {
		a.TPM = filepath.Join(dir, a.TPM)
	}
	return a, nil
}

// Parse decodes, completes with defaults and checks settings.
func Parse(b []byte) (*Agent, error) {
	a := new(Agent)
	if err := stricttoml.Decode(string(b), a); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "agent settings: %v", err)
	}
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&a.StateDir, "state")
	def(&a.IDevID, "idevid.pem")
	def(&a.Anchors.Services, "services-anchors.pem")
	def(&a.Anchors.Account, "account-anchors.pem")
	if a.Telemetry.Interval == 0 {
		a.Telemetry.Interval = Duration(10 * time.Second)
	}
	if a.Renewal.Fraction == 0 {
		a.Renewal.Fraction = 0.6
	}
	if a.Renewal.RotateKey == nil {
		t := true
		a.Renewal.RotateKey = &t
	}
	return a, a.check()
}

func (a *Agent) check() error {
	if err := cradle.CheckID("account", string(a.Account)); err != nil {
		return err
	}
	if err := cradle.CheckID("device", string(a.Device)); err != nil {
		return err
	}
	for _, f := range []struct{ name, v string }{
		{"tpm", a.TPM}, {"provider.url", a.Provider.URL},
		{"provisioning.endpoint", a.Provisioning.Endpoint}, {"provisioning.id_scope", a.Provisioning.IDScope},
	} {
		if f.v == "" {
			return cradle.Errorf(cradle.Invalid, "agent settings: %s is missing", f.name)
		}
	}
	if i := time.Duration(a.Telemetry.Interval); i < 100*time.Millisecond || i > 24*time.Hour {
		return cradle.Errorf(cradle.Invalid, "agent settings: telemetry.interval %v is outside 100ms to 24h", i)
	}
	if f := a.Renewal.Fraction; f < 0.1 || f > 0.9 {
		return cradle.Errorf(cradle.Invalid, "agent settings: renewal.fraction %v is outside 0.1 to 0.9", f)
	}
	return nil
}

// Encode writes the settings as TOML.
func (a *Agent) Encode() ([]byte, error) {
	var b bytes.Buffer
	err := toml.NewEncoder(&b).Encode(a)
	return b.Bytes(), err
}

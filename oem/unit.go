package oem

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/custody"
)

// Unit is the record of a made unit, in the OEM's folder (record.json) and in the unit's (unit.json).
// Digests are SHA-256 in lower-case hexadecimal.
type Unit struct {
	Order   cradle.OrderID   `json:"order"`
	Account cradle.AccountID `json:"account"`
	OEM     cradle.OEMID     `json:"oem"`
	Model   string           `json:"model"`
	Serial  string           `json:"serial"`
	Device  cradle.DeviceID  `json:"device"`
	EKType  string           `json:"ek_type"`
	EK      string           `json:"ek_digest"`     // of the EK's SubjectPublicKeyInfo
	IDevID  string           `json:"idevid_sha256"` // of the certificate
	IAK     string           `json:"iak_sha256"`    // of the certificate
	Made    time.Time        `json:"made_at"`       // when the line began it
}

// Custody is the unit's line in an acceptance report.
func (u *Unit) Custody() custody.Unit {
	return custody.Unit{Serial: u.Serial, Device: u.Device, EK: u.EK, IDevID: u.IDevID, IAK: u.IAK, Made: u.Made}
}

// claim binds a serial number to an endorsement key, before anything is made.
type claim struct {
	Serial string    `json:"serial"`
	EK     string    `json:"ek_digest"`
	EKType string    `json:"ek_type"`
	Began  time.Time `json:"began_at"`
}

// owner is the index eks/D: which unit has an endorsement key.
type owner struct {
	Order  cradle.OrderID `json:"order"`
	Serial string         `json:"serial"`
}

// claimUnit makes serial and EK one unit, or finds that they are. Any other pairing is Conflict.
//
// The unit's claim.json is the truth. An entry of eks/ counts only while the claim that it names
// confirms it, so that stopping between the two writes leaves nothing behind that refuses a unit.
func (l *line) claimUnit(serial, ek, ekType string) (*claim, error) {
	if err := durable.MkdirAll(l.path("eks"), 0o700); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(l.unitPath(serial), 0o700); err != nil {
		return nil, err
	}
	unlock, err := durable.Lock(l.path("eks", ".lock"), true) // two lines may not pair crosswise
	if err != nil {
		return nil, err
	}
	defer unlock()

	mine, err := readJSON[claim](l.unitPath(serial, "claim.json"))
	if err != nil {
		return nil, err
	}
	if mine != nil && mine.EK != ek {
		return nil, cradle.Errorf(cradle.Conflict, "serial %s is the unit with endorsement key %.16s; this TPM's is %.16s", serial, mine.EK, ek).
			WithHint("give this unit another serial number of the order")
	}
	index := l.path("eks", ek)
	other, err := readJSON[owner](index)
	if err != nil {
		return nil, err
	}
	me := owner{l.order.ID, serial}
	if other != nil && *other != me {
		theirs, err := readJSON[claim](l.orderPath(other.Order, "units", other.Serial, "claim.json"))
		if err != nil {
			return nil, err
		}
		if theirs != nil && theirs.EK == ek {
			return nil, cradle.Errorf(cradle.Conflict, "this TPM is already unit %s of order %s", other.Serial, other.Order).
				WithHint("personalise it again with that serial number, or use another TPM")
		}
	}
	if mine != nil {
		return mine, nil
	}
	if err := writeJSON(index, me); err != nil {
		return nil, err
	}
	if err := l.step("index"); err != nil {
		return nil, err
	}
	c := &claim{Serial: serial, EK: ek, EKType: ekType, Began: l.now().UTC().Truncate(time.Second)}
	return c, writeJSON(l.unitPath(serial, "claim.json"), c)
}

// releaseUnit takes a claim back when the provider refused the unit before anything was issued: the
// serial number may go to a unit with another TPM.
func (l *line) releaseUnit(serial string) error {
	if exists(l.unitPath(serial, "iak.pem")) {
		return nil
	}
	return errors.Join(os.Remove(l.unitPath(serial, "claim.json")), durable.SyncDir(l.unitPath(serial)))
}

func (l *line) unitPath(serial string, elem ...string) string {
	return l.orderPath(l.order.ID, append([]string{"units", serial}, elem...)...)
}

// units reads the records of all units made under the order.
func (l *line) units() ([]*Unit, error) {
	dirs, err := os.ReadDir(l.orderPath(l.order.ID, "units"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []*Unit
	for _, d := range dirs {
		u, err := readJSON[Unit](l.unitPath(d.Name(), "record.json"))
		if err != nil {
			return nil, err
		}
		if u != nil {
			out = append(out, u)
		}
	}
	return out, nil
}

// checkFolder refuses a unit folder that belongs to another unit.
func checkFolder(dir string, o cradle.OrderID, serial string) error {
	old, err := readJSON[Unit](filepath.Join(dir, "unit.json"))
	if err != nil {
		return err
	}
	if old != nil && (old.Order != o || old.Serial != serial) {
		return cradle.Errorf(cradle.Conflict, "folder %s holds unit %s of order %s", dir, old.Serial, old.Order).
			WithHint("give each unit a folder of its own with --unit")
	}
	return nil
}

// readJSON reads a file of ours; nil when there is none.
func readJSON[T any](path string) (*T, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := new(T)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s: %w", path, err).WithHint("the file was changed or made by a newer version")
	}
	return v, nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o644)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

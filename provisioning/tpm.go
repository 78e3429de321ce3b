package provisioning

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
)

// A challenge's key is made from the installation's secret, not stored: it holds for the TPM, the registration
// id, the operation that the registration has at that moment, and for one to two challengeLife. A registration
// begun with it moves the operation, so that a challenge is good for one; the token that was used may be sent
// again, as after a lost answer, and joins what it began.
const challengeLife = 10 * time.Minute

func (p *pending) challengeKey(ek, srk []byte, operation string, epoch int64) []byte {
	h := hmac.New(sha256.New, p.secret)
	for _, part := range [][]byte{[]byte("cradle-dps-tpm-v1"), []byte(p.id), ek, srk, []byte(operation), binary.BigEndian.AppendUint64(nil, uint64(epoch))} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

// byTPM makes a challenge, or checks what the TPM signed with its key. enrolled has the endorsement key that is
// expected.
func (p *pending) byTPM(c *Caller, enrolled *TPMKeys) error {
	if p.shown.TPM == nil {
		if p.shown.Token != "" && p.begun() {
			return p.polling(c)
		}
		if p.shown.Token != "" && p.shown.Operation != "" {
			return cradle.Errorf(cradle.Unauthorized, "this SAS token did not begin operation %.80q", p.shown.Operation).
				WithHint("poll with the token with which the device registered, or register again")
		}
		return p.wants("a TPM's endorsement and storage root key")
	}
	ek, err := tpmblob.Parse("enrolled endorsement key", enrolled.Endorsement)
	if err != nil {
		return cradle.Errorf(cradle.Internal, "%v", err)
	}
	if c.ek, err = tpmblob.Parse("endorsement key", p.shown.TPM.Endorsement); err != nil {
		return unproved(err)
	}
	if !c.ek.Equal(ek) {
		return cradle.Errorf(cradle.Unauthorized, "endorsement key is not the one of individual enrolment %q", p.id).
			WithHint("enrol the endorsement key that the device's TPM has, as TPM2B_PUBLIC in base64")
	}
	if c.srk, err = tpmblob.Parse("storage root key", p.shown.TPM.StorageRoot); err != nil {
		return unproved(err)
	}
	if len(enrolled.StorageRoot) > 0 {
		srk, err := tpmblob.Parse("enrolled storage root key", enrolled.StorageRoot)
		if err != nil {
			return cradle.Errorf(cradle.Internal, "%v", err)
		}
		if !c.srk.Equal(srk) {
			return cradle.Errorf(cradle.Unauthorized, "storage root key is not the one of individual enrolment %q", p.id).
				WithHint("the TPM was cleared or taken over: enrol its new storage root key, or leave it out of the enrolment")
		}
	}
	return p.activated(c)
}

// unproved makes a refusal of authentication of what was sent as proof.
func unproved(err error) error {
	detail, hint := cradle.Public(err)
	return &cradle.Error{Kind: cradle.Unauthorized, Detail: detail, Hint: hint, Err: err}
}

// polling takes the endorsement key from what registered: the token is proof enough of being the same device.
func (p *pending) polling(c *Caller) error {
	c.Thumbprint = p.present.Thumbprint
	return nil
}

// activated challenges the TPM with the keys of c, or checks the token that it signed.
func (p *pending) activated(c *Caller) error {
	c.Thumbprint = c.ek.Digest()
	var operation, previous, began string
	if p.present != nil {
		operation, previous, began = p.present.Operation, p.present.PrevOperation, p.present.Token
	}
	ek, srk := p.shown.TPM.Endorsement, p.shown.TPM.StorageRoot
	epoch := p.now.Unix() / int64(challengeLife/time.Second)
	if p.shown.Token == "" {
		blob, err := tpmblob.Make(c.ek, c.srk, p.challengeKey(ek, srk, operation, epoch))
		if err != nil {
			return unproved(cradle.Errorf(cradle.Invalid, "TPM keys: %v", err))
		}
		return &TPMChallenge{AuthenticationKey: blob, KeyName: KeyName}
	}
	t, err := p.token()
	if err != nil {
		return err
	}
	for e := epoch; e >= epoch-1; e-- {
		if t.Signed(p.challengeKey(ek, srk, operation, e)) {
			return t.InTime(p.now)
		}
	}
	// From here on only the reason is looked for, but for the token that began the present operation.
	for e := epoch; e >= epoch-12; e-- {
		switch {
		case t.Signed(p.challengeKey(ek, srk, previous, e)) && p.present != nil:
			if hmac.Equal([]byte(tokenHash(p.shown.Token)), []byte(began)) {
				return t.InTime(p.now)
			}
			return cradle.Errorf(cradle.Unauthorized, "SAS token is replayed: the challenge that it answers was used for an earlier registration").
				WithHint("register without a token first, to get a new authenticationKey")
		case t.Signed(p.challengeKey(ek, srk, operation, e)):
			return cradle.Errorf(cradle.Unauthorized, "the challenge that this SAS token answers has expired").
				WithHint("register without a token first, to get a new authenticationKey")
		}
	}
	return cradle.Errorf(cradle.Unauthorized, "SAS token was not signed with a key that this service sent to the TPM").
		WithHint("activate the authenticationKey of the refusal in the TPM and sign with it")
}

// byUnit admits a unit that a TPM group names.
func (p *pending) byUnit(c *Caller) error {
	c.Kind = TPMUnits
	if p.shown.TPM != nil {
		var err error
		if c.ek, err = tpmblob.Parse("endorsement key", p.shown.TPM.Endorsement); err != nil {
			return unproved(err)
		}
		if c.srk, err = tpmblob.Parse("storage root key", p.shown.TPM.StorageRoot); err != nil {
			return unproved(err)
		}
	}
	u := p.unit
	if u == nil {
		return cradle.Errorf(cradle.Unauthorized, "registration id %q is not enrolled: there is no individual enrolment of that name, and no TPM group names a unit with this endorsement key", p.id).
			WithHint("a group admits the units of an order or its lots by the endorsement key with which they were made; that of the order's ek_types must be the one that the device sends")
	}
	var group *Group
	for _, g := range p.roll.units {
		if g.Units.hold(u) && (group == nil || !group.Enabled) {
			group = g
		}
	}
	if group == nil {
		return cradle.Errorf(cradle.Unauthorized, "registration id %q is not enrolled: the unit with this TPM is of an order or a lot that no enrolment group names", p.id).
			WithHint("make a group of its order, or add its lot to one")
	}
	c.Group, c.etag, c.Account = group.ID, group.ETag, u.Account
	c.Facts.Order, c.Facts.Lot, c.Facts.Tier, c.Facts.Maker = u.Order, u.Lot, u.Tier, u.Maker
	// What is known of the unit is only told to its TPM.
	var err error
	if p.shown.TPM == nil {
		err = p.polling(c)
	} else {
		err = p.activated(c)
	}
	if err != nil {
		return err
	}
	if !strings.EqualFold(string(u.Device), string(p.id)) {
		return cradle.Errorf(cradle.Unauthorized, "the unit with this TPM is %q, the request is for registration id %q", u.Device, p.id).
			WithHint("register as %q", u.Device)
	}
	switch {
	case u.State.Blocked():
		return refuseBlocked(p.id, u.State)
	case u.State == cradle.Made && u.Lot == "":
		c.Waits = "its lot is not closed yet"
	case u.State == cradle.Made:
		c.Waits = "lot " + string(u.Lot) + " is not accepted yet"
	}
	return nil
}

package provider

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/cradle-iot/cradle/provider/attest"
)

// challenge is what travels sealed.
type challenge struct {
	attest.ChallengeState
	EKCert []byte // DER, for the record
}

// challengeAAD names the form of what is sealed: a challenge of another form does not open.
var challengeAAD = []byte("cradle-challenge-v3")

// maxIssuers bounds the issuers of an endorsement key in a challenge.
const maxIssuers = 16

// fields puts the challenge into f, or takes it from there.
func (c *challenge) fields(f *fields) {
	field(f, &c.Account)
	field(f, &c.Label)
	field(f, &c.AuthCert)
	field(f, &c.Nonce)
	expiry := binary.BigEndian.AppendUint64(nil, uint64(c.Expiry.UnixNano()))
	field(f, &expiry)
	if f.take {
		if len(expiry) != 8 {
			f.bad = true
			return
		}
		c.Expiry = time.Unix(0, int64(binary.BigEndian.Uint64(expiry)))
	}
	field(f, &c.Order)
	field(f, &c.Serial)
	field(f, &c.IAK)
	field(f, &c.Secret)
	field(f, &c.EKCert)
	ek := &c.EK
	field(f, &ek.Digest)
	field(f, &ek.Type)
	field(f, &ek.Maker)
	field(f, &ek.Tier)
	field(f, &ek.Anchor)
	field(f, &ek.Certificate)
	field(f, &ek.Manufacturer)
	field(f, &ek.Model)
	field(f, &ek.Version)
	for i := 0; i < len(ek.Issuers) || f.take && len(f.b) > 0 && !f.bad; i++ { // to the end
		if i == maxIssuers {
			f.bad = true
			return
		}
		if f.take {
			ek.Issuers = append(ek.Issuers, "")
		}
		field(f, &ek.Issuers[i])
	}
}

// fields are byte strings one behind the other, each after its length in two bytes.
type fields struct {
	b    []byte
	take bool // out of b, from its beginning; else put at its end
	bad  bool // too long to be put; or b ended within one
}

func field[T ~string | ~[]byte](f *fields, v *T) {
	if !f.take {
		f.bad = f.bad || len(*v) > 1<<16-1
		f.b = append(binary.BigEndian.AppendUint16(f.b, uint16(len(*v))), *v...)
		return
	}
	if f.bad || len(f.b) < 2 || len(f.b)-2 < int(binary.BigEndian.Uint16(f.b)) {
		f.bad = true
		return
	}
	n := 2 + int(binary.BigEndian.Uint16(f.b))
	if n > 2 { // what is empty stays nil
		*v = T(f.b[2:n:n])
	}
	f.b = f.b[n:]
}

// encode is the form that is sealed.
func (c *challenge) encode() ([]byte, error) {
	f := fields{b: make([]byte, 0, 512+len(c.EKCert)+len(c.IAK)+80*len(c.EK.Issuers))}
	if c.fields(&f); f.bad {
		return nil, errors.New("internal error: a challenge too long to be sealed")
	}
	return f.b, nil
}

func decodeChallenge(b []byte) (*challenge, error) {
	c, f := new(challenge), fields{b: b, take: true}
	if c.fields(&f); f.bad {
		return nil, errors.New("internal error: own challenge is cut short")
	}
	return c, nil
}

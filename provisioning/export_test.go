package provisioning

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle/internal/peerauth"
)

// Case is everything on which a decision rests.
type Case struct {
	Now        time.Time
	Shown      Credentials
	Individual *Enrollment
	Groups     []Group
	Present    *Registration
	Unit       *Unit
}

// Decide is the decision itself, for id scope "0ne1".
func Decide(c Case) (*Caller, error) {
	id, err := ParseRegistrationID(c.Shown.RegistrationID)
	if err != nil {
		return nil, err
	}
	s := &Service{store: fixed{groups: c.Groups}, now: func() time.Time { return c.Now }}
	s.groups.pool = peerauth.NewPool[*issuer](0)
	if err := s.reloadGroups(context.Background(), nil); err != nil {
		return nil, err
	}
	p := pending{now: c.Now, scope: "0ne1", id: id, shown: c.Shown, individual: c.Individual, roll: s.groups.now(), present: c.Present, unit: c.Unit, secret: []byte("secret")}
	return p.decide()
}

// fixed is a store of groups alone.
type fixed struct {
	Store
	groups []Group
}

func (f fixed) Groups(context.Context) ([]Group, error)     { return f.groups, nil }
func (f fixed) AnyEnrollment(context.Context) (bool, error) { return false, nil }

// TokenHash is what a registration keeps of a token.
func TokenHash(token string) string { return tokenHash(token) }

// ChallengeKey is the key of a challenge made at that time.
func ChallengeKey(id RegistrationID, k *TPMKeys, operation string, at time.Time) []byte {
	p := pending{id: id, secret: []byte("secret")}
	return p.challengeKey(k.Endorsement, k.StorageRoot, operation, at.Unix()/int64(challengeLife/time.Second))
}

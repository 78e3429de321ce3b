package provider

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// passwordRounds is OWASP's number for PBKDF2 with HMAC-SHA-256. (A variable for tests.)
var passwordRounds = 600_000

// Bounds of a password.
const (
	minPassword = 12
	maxPassword = 256
)

// hashPassword is kept as pbkdf2-sha256$ROUNDS$SALT$KEY.
func hashPassword(password string) string {
	salt := make([]byte, 16)
	rand.Read(salt)
	key := slowHash(password, salt, passwordRounds)
	e := base64.RawStdEncoding
	return fmt.Sprintf("pbkdf2-sha256$%d$%s$%s", passwordRounds, e.EncodeToString(salt), e.EncodeToString(key))
}

func slowHash(password string, salt []byte, rounds int) []byte {
	key, err := pbkdf2.Key(sha256.New, password, salt, rounds, 32)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return key
}

// passwordIs compares in constant time; a hash that cannot be read takes as long and is never right.
func passwordIs(hash, password string) bool {
	f := strings.Split(hash, "$")
	rounds, salt, want := passwordRounds, make([]byte, 16), []byte(nil)
	if len(f) == 4 && f[0] == "pbkdf2-sha256" {
		n, err := strconv.Atoi(f[1])
		s, err2 := base64.RawStdEncoding.DecodeString(f[2])
		k, err3 := base64.RawStdEncoding.DecodeString(f[3])
		if err == nil && err2 == nil && err3 == nil && n > 0 && n <= 10_000_000 {
			rounds, salt, want = n, s, k
		}
	}
	got := slowHash(password, salt, rounds)
	return subtle.ConstantTimeCompare(got, want) == 1
}

// passwords verifies passwords without paying for the slow hash each time: one that was right is remembered for
// a while by a keyed digest of itself and of the stored hash, so that a changed or disabled one is not. Slow
// hashes run one at a time, and an account that has seen too many wrong ones waits.
type passwords struct {
	key  [32]byte
	slow chan struct{} // holds one token

	mu    sync.Mutex
	right map[[32]byte]time.Time // until when
	wrong map[cradle.AccountID]*bucket
}

// bucket of wrong passwords: it leaks one each wrongEvery.
type bucket struct {
	level int
	at    time.Time
}

const (
	rightFor     = 10 * time.Minute
	maxRight     = 100_000
	maxWrong     = 20 // at once
	wrongEvery   = 3 * time.Second
	slowHashWait = 2 * time.Second
)

func (v *passwords) init() {
	rand.Read(v.key[:])
	v.slow = make(chan struct{}, 1)
	v.right, v.wrong = map[[32]byte]time.Time{}, map[cradle.AccountID]*bucket{}
}

func (v *passwords) digest(account cradle.AccountID, hash string, b Basic) (d [32]byte) {
	m := hmac.New(sha256.New, v.key[:])
	for _, s := range []string{string(account), hash, b.User, b.Password} {
		fmt.Fprintf(m, "%d:%s", len(s), s)
	}
	m.Sum(d[:0])
	return d
}

// verify reports whether b's password is that of hash. Busy: too many wrong ones lately.
func (v *passwords) verify(ctx context.Context, now time.Time, account cradle.AccountID, hash string, b Basic) (bool, error) {
	d := v.digest(account, hash, b)
	v.mu.Lock()
	until, known := v.right[d]
	w := v.wrong[account]
	if w != nil {
		if n := int(now.Sub(w.at) / wrongEvery); n > 0 {
			w.level, w.at = max(0, w.level-n), now
		}
	}
	full := w != nil && w.level >= maxWrong
	v.mu.Unlock()
	if known && now.Before(until) {
		return true, nil
	}
	if full {
		return false, cradle.Errorf(cradle.Busy, "too many wrong passwords at account %s", account).
			WithHint("try again later; cradle account basic shows the users").After(wrongEvery)
	}
	wait := time.NewTimer(slowHashWait)
	defer wait.Stop()
	select {
	case v.slow <- struct{}{}:
	case <-wait.C:
		return false, cradle.Errorf(cradle.Busy, "too many passwords wait to be checked").WithHint("try again")
	case <-ctx.Done():
		return false, ctx.Err()
	}
	ok := passwordIs(hash, b.Password)
	<-v.slow
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case ok:
		if len(v.right) >= maxRight {
			clear(v.right)
		}
		v.right[d] = now.Add(rightFor)
	case v.wrong[account] == nil:
		v.wrong[account] = &bucket{1, now}
	default:
		v.wrong[account].level++
	}
	return ok, nil
}

// basicParty finds out who a user of HTTP Basic is. An unknown user takes as long as a wrong password.
func (p *Provider) basicParty(ctx context.Context, e Endpoint, b Basic) (*party, error) {
	refuse := cradle.Errorf(cradle.Unauthorized, "user or password is wrong for label %s", e.Label).WithHint("the account's operator sets it: cradle account basic")
	if len(b.Password) > maxPassword || len(b.User) > cradle.MaxIDLen {
		return nil, refuse
	}
	u, err := p.store.BasicUser(ctx, e.Account, e.Profile, b.User)
	if cradle.KindOf(err) == cradle.NotFound || err == nil && u.Disabled {
		u, err = BasicUser{Disabled: true}, nil
	}
	if err != nil {
		return nil, err
	}
	hash := u.Password
	if u.Disabled {
		hash = ""
	}
	ok, err := p.passwords.verify(ctx, p.now(), e.Account, hash, b)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, refuse
	}
	origin := "basic/" + u.Name
	return &party{origin: origin, auth: origin, names: u.Names, tier: u.Tier}, nil
}

// SetBasicUser stores a user of HTTP Basic with its password, or changes both. Whoever knows the password may
// get a certificate for every name of the pattern that came by this user or is free.
func (p *Provider) SetBasicUser(ctx context.Context, u BasicUser, password string) (BasicUser, error) {
	if err := cradle.CheckID("user", u.Name); err != nil {
		return u, err
	}
	if err := p.checkClient(ctx, u.Account, u.Profile, u.Names, &u.Tier); err != nil {
		return u, err
	}
	if len(password) < minPassword || len(password) > maxPassword {
		return u, cradle.Errorf(cradle.Invalid, "the password has %d bytes; %d to %d are wanted", len(password), minPassword, maxPassword).
			WithHint("make one: openssl rand -base64 24")
	}
	u.Password, u.Disabled, u.Created = hashPassword(password), false, p.now()
	return u, p.storeBasic(ctx, u, "account basic")
}

// DisableBasicUser ends a user; its devices keep their certificates and renew with them.
func (p *Provider) DisableBasicUser(ctx context.Context, account cradle.AccountID, profile cradle.Profile, name string) (BasicUser, error) {
	u, err := p.store.BasicUser(ctx, account, profile, name)
	if err != nil {
		return u, err
	}
	u.Disabled, u.Password = true, ""
	return u, p.storeBasic(ctx, u, "account basic --disable")
}

func (p *Provider) storeBasic(ctx context.Context, u BasicUser, action string) error {
	leaf, err := p.operatorLeaf(ctx, string(u.Account), action, map[string]any{"account": u.Account, "profile": u.Profile,
		"user": u.Name, "names": u.Names, "tier": u.Tier, "settings": settings(u.Setting())})
	if err != nil {
		return err
	}
	if err := p.store.SetBasicUser(ctx, u, leaf); err != nil {
		return err
	}
	return p.reload(ctx)
}

// BasicUsers returns an account's users.
func (p *Provider) BasicUsers(ctx context.Context, account cradle.AccountID) ([]BasicUser, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return p.store.BasicUsers(ctx, account)
}

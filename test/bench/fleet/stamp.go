package fleet

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// stamp makes certificates of one profile: a first one by package ca, the others as copies of it with other
// values of the same lengths, signed by the same issuer.
type stamp struct {
	made                int64 // certificates
	shard               int64 // the first one's, 0: they name none
	issuer              *ca.Issuer
	key                 *ecdsa.PrivateKey
	first               []byte
	serial              []byte
	spki                []byte // the first one's
	shared              bool   // by all: its key is kept; else each has one that nobody keeps
	device, unit, ek    string
	notBefore, notAfter time.Time
}

func newStamp(iss *ca.Issuer, p cradle.Profile, key crypto.Signer, now, end time.Time) (*stamp, error) {
	signer, ok := iss.Key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("issuing key of type %T", iss.Key)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	n := ca.LeafSerial(now)
	s := &stamp{issuer: iss, key: signer, serial: n.Bytes(), spki: spki, unit: plant.Serial(plant.Fleet, 0), ek: digestOf("an EK")}
	s.device = string(plant.Account) + "-" + s.unit
	ek, err := hex.DecodeString(s.ek)
	if err != nil {
		return nil, err
	}
	begin := now.Add(-ca.Backdate)
	if nb := iss.Cert.NotBefore; begin.Before(nb) {
		begin = nb
	}
	rules := ca.DefaultProfile(p)
	if !rules.Kind.Birth() {
		rules.Validity = ca.Duration(end.Sub(begin))
	}
	c, err := ca.Issue(iss, ca.NewPermit("fleet", n), ca.Leaf{Profile: p, Rules: &rules, Account: plant.Account, Device: cradle.DeviceID(s.device), Serial: s.unit,
		Tier: cradle.Simulator, Proved: true, EKDigest: ek, Public: key.Public(), SPKI: spki, NotBefore: begin, NotAfter: end})
	if err != nil {
		return nil, err
	}
	s.first, s.notBefore, s.notAfter = c.Raw, c.NotBefore, c.NotAfter
	s.shard, _ = provider.PointOf(c.Raw)
	return s, nil
}

// firstShard numbers the CRL shards of each profile from another thousand on: all numbers are equally long, and profiles
// of one issuer share no shard.
var firstShard = map[cradle.Profile]int64{cradle.IAK: 1000, cradle.IDevID: 3000, cradle.LDevID: 5000, cradle.Operational: 7000}

func shardURL(statusURL, authority string, shard int64) string {
	return fmt.Sprintf("%s/crl/%s/%d.crl", statusURL, provider.StatusName(authority), shard)
}

// certificate makes d's, and names its key.
func (s *stamp) certificate(serial *big.Int, d *provider.Device) (der []byte, spki string, err error) {
	own := s.spki
	if !s.shared {
		key, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return nil, "", err
		}
		point := key.PublicKey().Bytes()
		own = append(bytes.Clone(s.spki[:len(s.spki)-len(point)]), point...)
	}
	// The device's name holds the unit's serial number, so it goes first.
	rs := []replace{{s.serial, serial.Bytes()}, {[]byte(s.device), []byte(d.ID)}, {[]byte(s.unit), []byte(d.Serial)}, {[]byte(s.ek), []byte(d.EKDigest)}, {s.spki, own}}
	if s.shard != 0 {
		rs = append(rs, replace{fmt.Appendf(nil, "/%d.crl", s.shard), fmt.Appendf(nil, "/%d.crl", s.shard+s.made/provider.ShardSize)})
	}
	s.made++
	der, err = resign(s.first, s.key, rs...)
	return der, digestOf(string(own)), err
}

type replace struct{ old, new []byte }

// resign makes a copy of a certificate with other bytes in it, all of the same length, and signs it with
// ECDSA and SHA-256.
func resign(der []byte, key *ecdsa.PrivateKey, rs ...replace) ([]byte, error) {
	var c struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return nil, err
	}
	tbs := c.TBS.FullBytes
	for _, r := range rs {
		if len(r.old) != len(r.new) {
			return nil, fmt.Errorf("%q is not as long as %q", r.new, r.old)
		}
		tbs = bytes.ReplaceAll(tbs, r.old, r.new)
	}
	digest := sha256.Sum256(tbs)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, c.Algorithm, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
}

package provider_test

import (
	"crypto/x509"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// TestSpentInOrder: what intents spend begins with a time, so that their rows follow each other in the store: the expiry of a
// challenge, the issue of the certificate that is renewed without one.
func TestSpentInOrder(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		var last int64
		for range 3 {
			must[*x509.Certificate](t)(r.renew(u, u.op))
			r.advance(time.Minute)
			ends := r.spent(`"challenge":"([0-9a-f]{12})-[0-9a-f]{64}"`)
			end, err := strconv.ParseInt(slices.Max(ends), 16, 64)
			if err != nil || end <= last || time.UnixMilli(end).Sub(r.now()).Abs() > 10*time.Minute {
				t.Errorf("a challenge of now says %s, %v, the one before %s", time.UnixMilli(end), err, time.UnixMilli(last))
			}
			last = end
		}
		r.basicUser(cradle.Operational, "line", "gw-*")
		c := must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-1", newKey(t), false)))
		csr := reCSR(t, c)
		renewed := must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Reenroll, byCert(c), csr))
		if again := must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Reenroll, byCert(c), csr)); !again.Equal(renewed) {
			t.Error("the same request again got another certificate")
		}
		if got, want := r.spent(`"challenge":"once/([0-9a-f]*)/[0-9a-f]{64}"`), string(ca.SerialString(c.SerialNumber))[:10]; !slices.Contains(got, want) || !slices.Contains(got, "") {
			t.Errorf("requests without a challenge spent %q, want one of %s and one of no certificate", got, want)
		}
		r.check()
	})
}

// spent finds what the pattern's group is in the log's export.
func (r *rig) spent(pattern string) (out []string) {
	r.t.Helper()
	for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(r.export(), -1) {
		out = append(out, string(m[1]))
	}
	return out
}

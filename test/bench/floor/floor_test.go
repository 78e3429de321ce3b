package floor_test

import (
	"testing"

	"github.com/cradle-iot/cradle/test/bench/floor"
)

func TestCounts(t *testing.T) {
	want := floor.Counts{floor.Exchange: 5, floor.HandshakeSign: 5, floor.VerifyLeaf: 5, floor.VerifyClient: 5, floor.VerifyEK: 1,
		floor.MakeCredential: 2, floor.VerifyCertify: 4, floor.VerifyCSR: 4, floor.IssueSign: 4, floor.TimeSign: 1}
	if floor.Onboarding != want {
		t.Errorf("an onboarding is %v, want %v", floor.Onboarding, want)
	}
	if want := (floor.Counts{floor.ExchangeP256: 1, floor.HandshakeSign: 1, floor.VerifyLeaf: 1, floor.VerifyClient: 1}); floor.MutualP256 != want {
		t.Errorf("a mutual handshake by P-256 is %v, want %v", floor.MutualP256, want)
	}
	c := floor.Cost{floor.Exchange: 10, floor.IssueSign: 3}
	if got := c.Of(floor.Onboarding); got != 62 {
		t.Errorf("5 x 10 + 4 x 3 is %d", got)
	}
}

func TestSampler(t *testing.T) {
	s, err := floor.Start()
	if err != nil {
		t.Fatal(err)
	}
	cost, n, err := s.Stop()
	if err != nil || n < 3 {
		t.Fatalf("%d samples, %v", n, err)
	}
	for p, d := range cost {
		if d <= 0 {
			t.Errorf("%v took %v", floor.Part(p), d)
		}
	}
}

package weakkey_test

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/weakkey"
)

func sound(t testing.TB) *rsa.PublicKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

// rocaModulus is a modulus of 2048 bits with the fingerprint: a power of 65537 modulo the product of the small primes.
func rocaModulus() *big.Int {
	product := big.NewInt(1)
	for p := int64(3); p <= 167; p += 2 {
		if big.NewInt(p).ProbablyPrime(0) {
			product.Mul(product, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(1234567), product)
	k := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(3), 2046), product)
	for n.Add(n, k.Mul(k, product)); n.Bit(0) == 0 || hasFactor(n); {
		n.Add(n, product)
	}
	return n
}

func hasFactor(n *big.Int) bool {
	for p := int64(3); p < 1000; p += 2 {
		if new(big.Int).Mod(n, big.NewInt(p)).Sign() == 0 {
			return true
		}
	}
	return false
}

// closePrimes is the product of a prime and one of the next after it.
func closePrimes(t *testing.T, distance int64) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	q := new(big.Int).Add(p, big.NewInt(distance))
	for q.SetBit(q, 0, 1); !q.ProbablyPrime(10); q.Add(q, big.NewInt(2)) {
	}
	n := p.Mul(p, q)
	if n.BitLen() != 2048 {
		return closePrimes(t, distance)
	}
	return n
}

func TestRSA(t *testing.T) {
	good := sound(t)
	times := func(p int64) *big.Int { // keeps the size
		n := new(big.Int).Div(good.N, big.NewInt(p))
		return n.Mul(n, big.NewInt(p))
	}
	odd := func(n *big.Int, p int64) *big.Int {
		if n.Bit(0) == 0 {
			n.Sub(n, big.NewInt(p))
		}
		return n
	}
	short := new(big.Int).Rsh(good.N, 1)
	for _, c := range []struct {
		name string
		key  rsa.PublicKey
		part string
	}{
		{"sound", *good, ""},
		{"the exponent 2^17+1", rsa.PublicKey{N: good.N, E: 131073}, ""},
		{"2047 bits", rsa.PublicKey{N: short.SetBit(short, 0, 1), E: 65537}, "2047 bits"},
		{"4097 bits", rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4096, 1), E: 65537}, "4097 bits"},
		{"exponent 3", rsa.PublicKey{N: good.N, E: 3}, "exponent 3"},
		{"exponent 65536", rsa.PublicKey{N: good.N, E: 65536}, "exponent 65536"},
		{"an even exponent", rsa.PublicKey{N: good.N, E: 65538}, "exponent 65538"},
		{"even", rsa.PublicKey{N: times(2), E: 65537}, "small factor"},
		{"a factor 997", rsa.PublicKey{N: odd(times(997), 997), E: 65537}, "small factor"},
		{"ROCA", rsa.PublicKey{N: rocaModulus(), E: 65537}, "ROCA"},
		{"twin primes", rsa.PublicKey{N: closePrimes(t, 2), E: 65537}, "close primes"},
		{"primes that differ in their lower half", rsa.PublicKey{N: closePrimes(t, 1<<60), E: 65537}, "close primes"},
	} {
		if why := weakkey.RSA(&c.key); c.part == "" && why != "" || !strings.Contains(why, c.part) {
			t.Errorf("%s: %q, want %q", c.name, why, c.part)
		}
	}
}

func TestROCA(t *testing.T) {
	if !weakkey.ROCA(rocaModulus()) {
		t.Error("a modulus with the fingerprint was not found")
	}
	for range 2000 {
		b := make([]byte, 256)
		rand.Read(b)
		b[0] |= 0x80
		b[255] |= 1
		if weakkey.ROCA(new(big.Int).SetBytes(b)) {
			t.Errorf("random modulus %x has the fingerprint", b)
		}
	}
}

func BenchmarkRSA(b *testing.B) {
	k := sound(b)
	for b.Loop() {
		if why := weakkey.RSA(k); why != "" {
			b.Fatal(why)
		}
	}
}

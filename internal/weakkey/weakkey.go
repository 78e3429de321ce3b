// Package weakkey finds RSA public keys whose private keys others can compute: too short, of odd exponents, or made by a
// flawed generator. It is what a CA looks at before it certifies a key (CA/Browser Forum Baseline
// Requirements §6.1.1.3, NIST SP 800-89 §5.3.3). EC keys need no such search: a point on a sound curve is as good as another.
package weakkey

import (
	"crypto/rsa"
	"fmt"
	"math/big"
)

// The sizes of RSA keys that are neither too short nor so long that verifying becomes an attack.
const (
	MinRSA = 2048
	MaxRSA = 4096
)

// RSA says what is weak about a key, or nothing.
func RSA(k *rsa.PublicKey) string {
	switch n := k.N.BitLen(); {
	case n < MinRSA || n > MaxRSA:
		return fmt.Sprintf("an RSA key has %d bits; %d to %d are allowed", n, MinRSA, MaxRSA)
	case k.E <= 1<<16 || k.E&1 == 0: // FIPS 186-5 §A.1.1
		return fmt.Sprintf("RSA exponent %d is not odd and above 65536", k.E)
	case k.N.Bit(0) == 0 || smallFactor(k.N):
		return "RSA modulus has a small factor"
	case ROCA(k.N):
		return "RSA modulus has the ROCA fingerprint (CVE-2017-15361)"
	case closePrimes(k.N):
		return "RSA modulus is the product of two close primes (CVE-2022-26320)"
	}
	return ""
}

// smallFactor looks for primes below 1000.
func smallFactor(n *big.Int) bool {
	return new(big.Int).GCD(nil, nil, n, smallPrimes).Cmp(big.NewInt(1)) != 0
}

var smallPrimes = func() *big.Int {
	product := big.NewInt(1)
	for p := int64(3); p < 1000; p += 2 {
		if x := big.NewInt(p); x.ProbablyPrime(0) {
			product.Mul(product, x)
		}
	}
	return product
}()

// fermatRounds is how many steps of Fermat's factorisation are tried. Sound keys need astronomically many; those that were
// found in printers fall in the first (Böck, 2022).
const fermatRounds = 100

// closePrimes tries to write n as a²-b²: then a-b and a+b are its factors.
func closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	a.Add(a, big.NewInt(1))
	b2 := new(big.Int).Mul(a, a)
	b2.Sub(b2, n)
	var root, step big.Int
	for range fermatRounds {
		if mayBeSquare(b2) && root.Mul(root.Sqrt(b2), &root).Cmp(b2) == 0 {
			return true
		}
		// (a+1)² - n = a² - n + 2a + 1
		b2.Add(b2, step.Lsh(a, 1).Add(&step, big.NewInt(1)))
		a.Add(a, big.NewInt(1))
	}
	return false
}

// mayBeSquare rules out nineteen of twenty numbers by their last bits and their rest modulo 3·5·7·11·13.
func mayBeSquare(n *big.Int) bool {
	if squares64&(1<<(n.Bits()[0]&63)) == 0 {
		return false
	}
	var rest big.Int
	return squaresMod[rest.Mod(n, big15015).Uint64()]
}

var (
	squares64 = func() (set uint64) {
		for i := range uint64(64) {
			set |= 1 << (i * i % 64)
		}
		return set
	}()
	big15015   = big.NewInt(15015)
	squaresMod = func() (set [15015]bool) {
		for i := range set {
			set[i*i%len(set)] = true
		}
		return set
	}()
)

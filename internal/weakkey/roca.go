package weakkey

import "math/big"

// rocaPrimes are the small primes of the ROCA fingerprint: a modulus made by Infineon's flawed library
// is a power of 65537 modulo each of them (Nemec et al., CCS 2017; CVE-2017-15361).
var rocaPrimes = [...]uint64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
	101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
}

// rocaResidues[i] holds the powers of 65537 modulo rocaPrimes[i], as a set of bits.
var rocaResidues = func() (out [len(rocaPrimes)][3]uint64) {
	for i, p := range rocaPrimes {
		for r := uint64(1); out[i][r/64]&(1<<(r%64)) == 0; r = r * 65537 % p {
			out[i][r/64] |= 1 << (r % 64)
		}
	}
	return out
}()

// ROCA reports whether n has the fingerprint. A random modulus has it with probability below 2^-27.
func ROCA(n *big.Int) bool {
	rest := new(big.Int).Mod(n, rocaProduct) // one long division, then short ones
	var m big.Int
	for i, p := range rocaPrimes {
		r := m.Mod(rest, m.SetUint64(p)).Uint64()
		if rocaResidues[i][r/64]&(1<<(r%64)) == 0 {
			return false
		}
	}
	return true
}

var rocaProduct = func() *big.Int {
	p := big.NewInt(1)
	for _, x := range rocaPrimes {
		p.Mul(p, new(big.Int).SetUint64(x))
	}
	return p
}()

package cradle

import "crypto/x509"

// Arc is the root of our object identifiers: a UUID under 2.25 (ITU-T X.667). docs/oids.md is
// the published table. x509.OID holds such arcs; asn1.ObjectIdentifier does not.
const Arc = "2.25.172567384419473948585027457238676076700"

func oid(suffix string) x509.OID {
	o, err := x509.ParseOID(Arc + suffix)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return o
}

// Certificate policies (RFC 5280 §4.2.1.4): one for the tier, one for how the key is known. Both
// stand in every leaf and in every CA certificate below a root.
var (
	tierPolicy = map[Tier]x509.OID{
		DiscreteTPM: oid(".1.1.1"),
		FirmwareTPM: oid(".1.1.2"),
		VirtualTPM:  oid(".1.1.3"),
		Simulator:   oid(".1.1.4"),
		SoftwareKey: oid(".1.1.5"),
	}
	// PolicyKeyProved says that the certified key was proved to live in the device's TPM.
	PolicyKeyProved = oid(".1.2.1")
	// PolicyKeyNotProved says that nothing proved where the certified key lives.
	PolicyKeyNotProved = oid(".1.2.2")
	// PolicyKeyActivated stands beside PolicyKeyNotProved: the certificate was readable only by the TPM that holds its
	// key (tpmenroll), and nothing else speaks for where the key lives.
	PolicyKeyActivated = oid(".1.2.3")
	// OIDActivation types the nonce's reqInfo and respInfo and the CSR statement that carries the challenge back.
	OIDActivation = oid(".2.1")
)

// TierPolicy returns the certificate policy of a tier.
func TierPolicy(t Tier) x509.OID { return tierPolicy[t] }

// ClassPolicies lists the policies that the CA certificates of a class carry, key proved or not.
func ClassPolicies(c Class, proved bool) []x509.OID {
	var out []x509.OID
	for _, t := range Tiers {
		if t.Class() == c {
			out = append(out, tierPolicy[t])
		}
	}
	if proved {
		return append(out, PolicyKeyProved)
	}
	return append(out, PolicyKeyNotProved, PolicyKeyActivated)
}

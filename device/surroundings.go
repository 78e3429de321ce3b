package device

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

// Key is a private key in the TPM: ECDSA P-256, signing SHA-256 digests.
type Key interface {
	crypto.Signer
}

// TPM is what the device needs of its TPM. It is used by several goroutines. IDevID and LDevID give the same key each
// time, the LDevID's until the TPM is cleared.
type TPM interface {
	IDevID(ctx context.Context) (Key, error)
	IDevIDCertificate(ctx context.Context) (der []byte, err error) // from NV
	LDevID(ctx context.Context) (Key, error)
	CreateKey(ctx context.Context) (blob []byte, err error) // leaves nothing in the TPM
	LoadKey(ctx context.Context, blob []byte) (Key, error)
	Activate(ctx context.Context, credentialBlob, encryptedSecret []byte) (secret []byte, err error)
	// Certify has the attestation key vouch for a key of this TPM with extraData as qualifying data.
	Certify(ctx context.Context, key Key, extraData []byte) (evidence.Certify, error)
	Close() error
}

// Provider is a client of the provider that keeps its connection between calls.
type Provider interface {
	// Time asks for a statement, which is not verified yet. NotFound: there is no such service.
	Time(ctx context.Context, nonce []byte) (*timestamp.Statement, error)
	EST(label string) EST
	Close()
}

// EST speaks to an EST label, authenticated by TLS. *est.Client has these methods. A refusal
// is an *est.StatusError; any other error leaves open whether the server acted.
type EST interface {
	CACerts(ctx context.Context) ([]*x509.Certificate, error)
	Nonce(ctx context.Context, typ x509.OID, claim any) (est.NonceResponse, error)
	SimpleEnroll(ctx context.Context, csr []byte) (*x509.Certificate, error)
	SimpleReenroll(ctx context.Context, csr []byte) (*x509.Certificate, error)
}

// Hub is an MQTT connection to a hub. *mqtt.Client has these methods.
type Hub interface {
	Send(topic string, qos mqtt.QoS, payload []byte) (<-chan error, error)
	Run(ctx context.Context) error
	Close() error
}

// Network reaches the services. The TLS configuration given holds anchors, time and the client certificate
// (by GetClientCertificate), and is to be used as it is. Every call ends with its context.
type Network interface {
	// Provider makes a client of the provider at url; it connects at its first call.
	Provider(url string, c *tls.Config) Provider
	Register(ctx context.Context, endpoint, idScope string, c *tls.Config, registrationID string) (*dps.Assignment, error)
	// Connect dials the hub, host or host:port, and waits until it accepted the CONNECT.
	Connect(ctx context.Context, hub string, c *tls.Config, o mqtt.Options) (Hub, error)
}

package device

import (
	"context"
	"fmt"

	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// OpenTPM opens the TPM at path (a device node, or the Unix socket of a software TPM) for Options.OpenTPM.
func OpenTPM(path string) func(ctx context.Context) (TPM, error) {
	return func(ctx context.Context) (TPM, error) {
		t, err := tpmkey.Open(ctx, path)
		if err != nil {
			return nil, err
		}
		return hardware{t}, nil
	}
}

// hardware gives package tpmkey's keys as interfaces.
type hardware struct{ *tpmkey.TPM }

func asKey(k *tpmkey.Key, err error) (Key, error) {
	if err != nil {
		return nil, err // not a nil *tpmkey.Key in an interface
	}
	return k, nil
}

func (h hardware) IDevID(ctx context.Context) (Key, error) { return asKey(h.EnsureIDevID(ctx)) }
func (h hardware) LDevID(ctx context.Context) (Key, error) { return asKey(h.EnsureLDevID(ctx)) }
func (h hardware) LoadKey(ctx context.Context, blob []byte) (Key, error) {
	return asKey(h.TPM.LoadKey(ctx, blob))
}

func (h hardware) IDevIDCertificate(ctx context.Context) ([]byte, error) {
	return h.ReadCertificate(ctx, tpmkey.NVIDevID)
}

func (h hardware) Certify(ctx context.Context, key Key, extraData []byte) (evidence.Certify, error) {
	k, ok := key.(*tpmkey.Key)
	if !ok {
		return evidence.Certify{}, fmt.Errorf("internal error: a %T is not of this TPM", key)
	}
	return h.TPM.Certify(ctx, k, extraData)
}

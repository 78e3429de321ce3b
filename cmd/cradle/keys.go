package main

import (
	"strings"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/keys/p11key"
)

// Keystores says where issuing keys are.
type Keystores struct {
	Keys    []string `help:"Where issuing keys are: file (sealed in the database), or a token as pkcs11:token=LABEL?module-path=PATH (RFC 7512). New keys are made in the first; give it several times while keys of older stores are in use. Files are always read." default:"file" sep:"none" placeholder:"STORE"`
	PINFile string   `name:"pin-file" help:"File with the PIN of the PKCS#11 token; not needed where the URI has a pin-source or systemd hands in the credential pkcs11-pin." placeholder:"FILE" type:"path"`
}

// open opens the stores. The vault seals keys in files.
func (k *Keystores) open(vault *filekey.Vault) (keystore.Store, error) {
	files := filekey.Store{Vault: vault}
	var out keystore.Stores
	haveFiles := false
	for _, s := range k.Keys {
		switch scheme, _, _ := strings.Cut(s, ":"); scheme {
		case filekey.Scheme:
			out, haveFiles = append(out, files), true
		case p11key.Scheme:
			t, err := p11key.Open(s, k.PINFile)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		default:
			return nil, cli.Usagef("--keys %q: use file or a pkcs11: URI", s)
		}
	}
	if !haveFiles {
		out = append(out, files)
	}
	return out, nil
}

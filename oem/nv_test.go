package oem_test

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/internal/tpmio"
)

// removeNV takes NV indices away, as if they had never been written.
func removeNV(t *testing.T, socket string, indices ...uint32) {
	t.Helper()
	conn, err := tpmio.Open(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tpm := conn.With(t.Context())
	for _, i := range indices {
		read, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(i)}.Execute(tpm)
		if err != nil {
			continue // not there
		}
		pub, err := read.NVPublic.Contents()
		if err != nil {
			t.Fatal(err)
		}
		auth := tpm2.TPMRHOwner
		if pub.Attributes.PlatformCreate {
			auth = tpm2.TPMRHPlatform
		}
		undefine := tpm2.NVUndefineSpace{AuthHandle: tpm2.AuthHandle{Handle: auth, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(i), Name: read.NVName}}
		if _, err := undefine.Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// EnrollmentCreateCmd enrols one device with a symmetric key, for devices that have nothing better. Whoever has
// Microsoft's service SDK does the same with that.
type EnrollmentCreateCmd struct {
	Operator
	ID       string `arg:"" help:"Registration id of the device."`
	DeviceID string `help:"Name that it gets at its hub; default: the registration id." placeholder:"NAME"`
	Account  string `help:"Account whose suspensions and revocations it obeys." placeholder:"NAME"`
	KeyOut   string `help:"File for the device's key, in base64 (mode 0600)." required:"" placeholder:"FILE" type:"path"`
}

// Run makes the enrolment by the service API that Azure DPS has too; the service makes the key.
func (c *EnrollmentCreateCmd) Run(ctx context.Context, out *cli.Out) error {
	if dir := filepath.Dir(c.KeyOut); !isFolder(dir) { // before anything is enrolled
		return cradle.Errorf(cradle.Invalid, "there is no folder %s for the key", dir).WithHint("choose a file in a folder you may write to with --key-out")
	}
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	e, err := svc.PutEnrollment(ctx, dps.Enrollment{RegistrationID: c.ID, DeviceID: c.DeviceID, Account: c.Account, Attestation: dps.Attestation{Type: "symmetricKey"}})
	if err != nil {
		return err
	}
	secret, err := svc.AttestationMechanism(ctx, e.RegistrationID)
	if err != nil {
		return err
	}
	if secret.SymmetricKey == nil || secret.SymmetricKey.PrimaryKey == "" {
		return cradle.Errorf(cradle.Internal, "the service shows no key of %s", e.RegistrationID)
	}
	if err := durable.WriteFile(c.KeyOut, []byte(secret.SymmetricKey.PrimaryKey+"\n"), 0o600); err != nil {
		return err
	}
	return out.Print(map[string]string{"id": e.RegistrationID, "host": svc.Conn.HostName, "etag": e.ETag, "file": c.KeyOut}, func(w io.Writer) {
		fmt.Fprintf(w, "%s is enrolled at %s; its key is in %s\n", e.RegistrationID, svc.Conn.HostName, c.KeyOut)
	})
}

func isFolder(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.IsDir()
}

package main

import (
	"fmt"
	"os"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// secretFile reads a file with a password, key or connection string for a verb. Our own keys are refused when others may read
// them; these come from elsewhere, as container secrets of mode 0444 do, so it warns.
func secretFile(out *cli.Out, file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "%v", err)
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		fmt.Fprintf(out.Err, "warning: %s holds a secret and may be read by others (mode %#o); chmod 600 %s\n", file, perm, file)
	}
	return b, nil
}

// connectionString reads a file with one.
func connectionString(out *cli.Out, file string) (*sas.ConnectionString, error) {
	b, err := secretFile(out, file)
	if err != nil {
		return nil, err
	}
	return sas.ParseConnectionString(string(b))
}

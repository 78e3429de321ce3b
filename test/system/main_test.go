// Package system_test runs scenarios over the whole system: real programs, real software TPMs, both stores.
package system_test

import (
	"os"
	"testing"

	"github.com/cradle-iot/cradle/test/world"
)

func TestMain(m *testing.M) { os.Exit(world.Main(m)) }

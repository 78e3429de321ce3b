package testenv

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallDisk is a folder with a file system of its own, of a size as mount takes it ("24m"), which a test may fill. To mount it
// needs root: without, the test is skipped, but not in CI.
func SmallDisk(t testing.TB, size string) string {
	t.Helper()
	disk, err := os.MkdirTemp("", "cradle-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(disk) })
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mounting a small file system: %v", err)
		}
		t.Skipf("mounting a small file system needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return disk
}

// Package zlint runs zmap/zlint over the golden certificates of provider/ca. It is a module of its own, so that the linter, a
// test's tool alone, is in no go.mod of ours. findings.txt lists what zlint says and why it stays so; a finding that is not
// there fails the test, as does one that is there no more.
package zlint

// Package evaluation holds the tests of what a newcomer does first: they execute docs/evaluation.md,
// every command as it is written there, and see that the demo leaves nothing running however it ends.
package evaluation

// Package docs holds the tests that keep docs/ true: they run the commands that a page shows, and
// compare what it says with the code.
package docs

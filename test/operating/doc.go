// Package operating does what the pages of docs/operating say, with the built programs.
package operating

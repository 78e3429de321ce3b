package main

import (
	"strconv"
	"strings"
)

// parseLog takes a line of log/slog's text format apart; nil for anything else.
func parseLog(line string) map[string]string {
	m := map[string]string{}
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		key, rest, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \"") {
			return nil
		}
		if !strings.HasPrefix(rest, `"`) {
			m[key], line, _ = strings.Cut(rest, " ")
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return nil
		}
		if m[key], err = strconv.Unquote(quoted); err != nil {
			return nil
		}
		line = rest[len(quoted):]
	}
	if m["msg"] == "" {
		return nil
	}
	return m
}

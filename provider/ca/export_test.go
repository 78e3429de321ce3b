package ca

// Clauses lists the checks before a signature.
func Clauses() []string {
	var out []string
	for _, c := range checks {
		out = append(out, c.clause)
	}
	return out
}

// Glob is how names are matched.
var Glob = glob

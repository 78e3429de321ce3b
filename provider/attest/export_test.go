package attest

import (
	"crypto/x509"
	"slices"
)

// Registered lists the codes of all checks that can be removed. Those of TPM keys are without prefix.
func Registered() []Code {
	var out []Code
	eachList(func(codes []Code, _ func(i int) func()) {
		out = append(out, codes...)
	})
	slices.Sort(out)
	return slices.Compact(out)
}

// Without removes every check of that code until restore is called.
func Without(code Code) (restore func()) {
	var undo []func()
	eachList(func(codes []Code, remove func(i int) func()) {
		if i := slices.Index(codes, code); i >= 0 {
			undo = append(undo, remove(i))
		}
	})
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

func eachList(visit func(codes []Code, remove func(i int) (undo func()))) {
	list(&ekChecks, visit)
	list(&ruleChecks, visit)
	list(&pathChecks, visit)
	list(&signatureChecks, visit)
	list(&keyChecks, visit)
	list(&stateChecks, visit)
	list(&csrChecks, visit)
	list(&signatures, visit)
	list(&clientChecks, visit)
	list(&clientPathChecks, visit)
	list(&possessionChecks, visit)
	list(&possessionSignature, visit)
	list(&tpmChecks, visit)
}

func list[S any](l *[]check[S], visit func([]Code, func(int) func())) {
	codes := make([]Code, len(*l))
	for i, c := range *l {
		codes[i] = c.code
	}
	visit(codes, func(i int) func() {
		was := *l
		*l = slices.Delete(slices.Clone(was), i, i+1)
		return func() { *l = was }
	})
}

// PathTo looks for a path from any certificate.
func PathTo(s *AnchorSet, c *x509.Certificate, chain [][]byte) Reasons {
	_, why := s.findPath(c, chain)
	return why
}

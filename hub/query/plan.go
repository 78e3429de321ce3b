package query

// Bounds are what every matching device is known to have, so that a store need not read the others. They are
// necessary, not sufficient: Match decides.
type Bounds struct {
	DeviceID *string // deviceId equals it
	Status   *string // status equals it
	Never    bool    // nothing can match
}

// Bounds finds equalities that stand alone or in ANDs.
func (q *Query) Bounds() Bounds {
	var b Bounds
	var walk func(Expr)
	walk = func(e Expr) {
		switch e := e.(type) {
		case *And:
			walk(e.Left)
			walk(e.Right)
		case *Compare:
			path, lit := e.Left, e.Right
			if path.Path == nil {
				path, lit = lit, path
			}
			s, isText := lit.Literal.Value.(string)
			if e.Op != "=" || lit.Path != nil || len(path.Path) != 1 || !isText {
				return
			}
			set := func(to **string) {
				b.Never = b.Never || *to != nil && **to != s
				*to = &s
			}
			switch path.Path[0] {
			case "deviceId":
				set(&b.DeviceID)
			case "status":
				set(&b.Status)
			}
		}
	}
	if q.Where != nil {
		walk(q.Where)
	}
	return b
}

// Reads reports whether the answer or its conditions look at a path beginning with one of the roots.
func (q *Query) Reads(roots ...string) bool {
	found := q.All
	see := func(p Path) {
		for _, r := range roots {
			found = found || len(p) > 0 && p[0] == r
		}
	}
	for _, it := range q.Items {
		see(it.Path)
	}
	for _, p := range q.Group {
		see(p)
	}
	var walk func(Expr)
	walk = func(e Expr) {
		switch e := e.(type) {
		case *Or:
			walk(e.Left)
			walk(e.Right)
		case *And:
			walk(e.Left)
			walk(e.Right)
		case *Not:
			walk(e.Expr)
		case *Compare:
			see(e.Left.Path)
			see(e.Right.Path)
		case *In:
			see(e.Path)
		case *Call:
			see(e.Path)
		}
	}
	if q.Where != nil {
		walk(q.Where)
	}
	return found
}

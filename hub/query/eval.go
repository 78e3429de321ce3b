package query

import (
	"cmp"
	"encoding/json"
	"sort"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Doc is one device or module: it returns the value at a path, as encoding/json decodes one with UseNumber; false
// when it has none.
type Doc func(Path) (any, bool)

// truth is a three-valued answer.
type truth int

const (
	undefined truth = iota
	no
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// Match reports whether the device is asked for.
func (q *Query) Match(d Doc) bool { return q.Where == nil || q.Where.eval(d) == yes }

// Row is the answer's line for a device of a query without COUNT() and GROUP BY. What the device does not have is
// left out.
func (q *Query) Row(d Doc) map[string]any {
	out := map[string]any{}
	for _, it := range q.Items {
		if v, ok := d(it.Path); ok {
			out[it.Column()] = v
		}
	}
	return out
}

// Aggregate reports whether the answer is counted (Groups) rather than one line for each device (Row).
func (q *Query) Aggregate() bool {
	for _, it := range q.Items {
		if it.Count {
			return true
		}
	}
	return len(q.Group) > 0
}

func (e *Or) eval(d Doc) truth {
	l := e.Left.eval(d)
	if l == yes {
		return yes
	}
	if r := e.Right.eval(d); r == yes || l == no {
		return r
	}
	return undefined
}

func (e *And) eval(d Doc) truth {
	l := e.Left.eval(d)
	if l == no {
		return no
	}
	if r := e.Right.eval(d); r == no || l == yes {
		return r
	}
	return undefined
}

func (e *Not) eval(d Doc) truth {
	switch e.Expr.eval(d) {
	case yes:
		return no
	case no:
		return yes
	}
	return undefined
}

func (o Operand) value(d Doc) (any, bool) {
	if o.Path == nil {
		return o.Literal.Value, true
	}
	return d(o.Path)
}

func (e *Compare) eval(d Doc) truth {
	l, lok := e.Left.value(d)
	r, rok := e.Right.value(d)
	if !lok && e.Right.isNull() || !rok && e.Left.isNull() {
		lok, rok = true, true // and the value is nil
	}
	if !lok || !rok {
		return undefined
	}
	switch e.Op {
	case "=":
		return truthOf(equal(l, r))
	case "!=":
		return truthOf(!equal(l, r))
	}
	c, ok := order(l, r)
	switch {
	case !ok:
		return undefined
	case e.Op == "<":
		return truthOf(c < 0)
	case e.Op == "<=":
		return truthOf(c <= 0)
	case e.Op == ">":
		return truthOf(c > 0)
	}
	return truthOf(c >= 0)
}

func (o Operand) isNull() bool { return o.Path == nil && o.Literal.Value == nil }

func (e *In) eval(d Doc) truth {
	v, ok := d(e.Path)
	if !ok {
		return undefined
	}
	for _, l := range e.List {
		if equal(v, l.Value) {
			return truthOf(!e.Not)
		}
	}
	return truthOf(e.Not)
}

func (e *Call) eval(d Doc) truth {
	v, ok := d(e.Path)
	if e.Name == "IS_DEFINED" {
		return truthOf(ok)
	}
	s, isText := v.(string)
	if !ok || !isText {
		return undefined
	}
	switch e.Name {
	case "STARTSWITH":
		return truthOf(strings.HasPrefix(s, e.Text))
	case "ENDSWITH":
		return truthOf(strings.HasSuffix(s, e.Text))
	}
	return truthOf(strings.Contains(s, e.Text))
}

// numeric returns a number's value.
func numeric(v any) (float64, bool) {
	switch n := v.(type) {
	case Number:
		f, err := json.Number(n).Float64()
		return f, err == nil
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	}
	return 0, false
}

// equal compares values; objects and arrays equal nothing.
func equal(a, b any) bool {
	if c, ok := order(a, b); ok {
		return c == 0
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case bool:
		bb, ok := b.(bool)
		return ok && a == bb
	}
	return false
}

// order compares two numbers or two texts.
func order(a, b any) (int, bool) {
	if x, ok := numeric(a); ok {
		y, ok := numeric(b)
		return cmp.Compare(x, y), ok
	}
	x, ok1 := a.(string)
	y, ok2 := b.(string)
	return strings.Compare(x, y), ok1 && ok2
}

// MaxGroups bounds the lines of a counted answer.
const MaxGroups = 1000

// Groups counts the devices of an aggregate query.
type Groups struct {
	query *Query
	rows  map[string]*group
}

type group struct {
	values map[string]any // of the paths, by Path.String
	n      int64
}

// Groups begins a count.
func (q *Query) Groups() *Groups {
	g := &Groups{query: q, rows: map[string]*group{}}
	if len(q.Group) == 0 {
		g.rows[""] = new(group) // counts to zero
	}
	return g
}

// Add counts a device, or n that are alike. TooLarge when there are too many groups.
func (g *Groups) Add(d Doc, n int64) error {
	if len(g.query.Group) == 0 {
		g.rows[""].n += n
		return nil
	}
	var key strings.Builder
	values := map[string]any{}
	for _, p := range g.query.Group {
		v, ok := d(p)
		if !ok {
			key.WriteString("|")
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		key.WriteString(string(b) + "|")
		values[p.String()] = v
	}
	row := g.rows[key.String()]
	if row == nil {
		if len(g.rows) >= MaxGroups {
			return cradle.Errorf(cradle.TooLarge, "query: more than %d groups", MaxGroups).WithHint("group by a property with fewer values")
		}
		row = &group{values: values}
		g.rows[key.String()] = row
	}
	row.n += n
	return nil
}

// Rows is the answer, in order of the groups' values as JSON.
func (g *Groups) Rows() []map[string]any {
	keys := make([]string, 0, len(g.rows))
	for k := range g.rows {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	out := make([]map[string]any, 0, len(keys))
	for _, k := range keys {
		line := map[string]any{}
		for _, it := range g.query.Items {
			if it.Count {
				line[it.Column()] = g.rows[k].n
			} else if v, ok := g.rows[k].values[it.Path.String()]; ok {
				line[it.Column()] = v
			}
		}
		out = append(out, line)
	}
	return out
}

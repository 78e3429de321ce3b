package query

import (
	"strings"
)

// Source is what a query reads.
type Source string

// The sources.
const (
	Devices Source = "devices"
	Modules Source = "devices.modules"
)

// Query is a parsed query.
type Query struct {
	All   bool // SELECT *
	Items []Item
	From  Source
	Where Expr // nil: every device
	Group []Path
}

// Item is one column of the answer.
type Item struct {
	Count bool // COUNT(), else Path
	Path  Path
	Name  string // AS name; "" when not given, see Item.Column
}

// Column is the item's name in the answer: the one given, else the last name of its path, or "$1" for COUNT() as
// Azure has it.
func (i Item) Column() string {
	switch {
	case i.Name != "":
		return i.Name
	case i.Count:
		return "$1"
	}
	return i.Path[len(i.Path)-1]
}

// Path names a property, from one of Roots down.
type Path []string

// Expr is a condition: *Or, *And, *Not, *Compare, *In or *Call.
type Expr interface {
	eval(Doc) truth
	print(b *strings.Builder, prec int)
}

// Or is true when one is.
type Or struct{ Left, Right Expr }

// And is true when both are.
type And struct{ Left, Right Expr }

// Not is true when the other is false.
type Not struct{ Expr Expr }

// Compare holds a value against another. At least one of them is a path.
type Compare struct {
	Left  Operand
	Op    string // = != < > <= >=
	Right Operand
}

// In is true when the path's value equals one of the literals.
type In struct {
	Path Path
	Not  bool
	List []Literal
}

// Call is a function.
type Call struct {
	Name string // as in Functions
	Path Path
	Text string // second argument, unless Name is IS_DEFINED
}

// Operand is a path or a literal.
type Operand struct {
	Path    Path // nil: Literal
	Literal Literal
}

// Literal is a value: nil, a bool, a string or a Number.
type Literal struct{ Value any }

// Number is a number as written.
type Number string

// Functions names the functions that are served; both spellings of the second word's beginning are read.
var Functions = []string{"IS_DEFINED", "STARTSWITH", "ENDSWITH", "CONTAINS"}

// Roots are the names with which a path may begin.
var Roots = []string{"deviceId", "moduleId", "etag", "deviceEtag", "status", "statusReason", "statusUpdateTime", "connectionState",
	"lastActivityTime", "cloudToDeviceMessageCount", "authenticationType", "x509Thumbprint", "modelId", "version", "tags", "properties", "capabilities"}

// String prints the query in one way; Parse reads it back.
func (q *Query) String() string {
	var b strings.Builder
	b.WriteString("SELECT ")
	if q.All {
		b.WriteString("*")
	}
	for i, it := range q.Items {
		if i > 0 {
			b.WriteString(", ")
		}
		if it.Count {
			b.WriteString("COUNT()")
		} else {
			b.WriteString(it.Path.String())
		}
		if it.Name != "" {
			b.WriteString(" AS " + it.Name)
		}
	}
	b.WriteString(" FROM " + string(q.From))
	if q.Where != nil {
		b.WriteString(" WHERE ")
		q.Where.print(&b, 0)
	}
	for i, p := range q.Group {
		if i == 0 {
			b.WriteString(" GROUP BY ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// String prints the path; names that are not plain stand in brackets.
func (p Path) String() string {
	var b strings.Builder
	for i, n := range p {
		switch {
		case !plain(n):
			b.WriteString("[" + quote(n) + "]")
		case i > 0:
			b.WriteString("." + n)
		default:
			b.WriteString(n)
		}
	}
	return b.String()
}

func plain(n string) bool {
	for i := range len(n) {
		if !isName(n[i]) {
			return false
		}
	}
	return n != "" && isNameStart(n[0])
}

func (l Literal) String() string {
	switch v := l.Value.(type) {
	case bool:
		if v {
			return "true"
		}
		return "false"
	case string:
		return quote(v)
	case Number:
		return string(v)
	}
	return "null"
}

func (o Operand) String() string {
	if o.Path != nil {
		return o.Path.String()
	}
	return o.Literal.String()
}

// Precedences: what stands inside something that binds closer gets parentheses.
const (
	precOr = iota + 1
	precAnd
	precNot
)

func wrap(b *strings.Builder, mine, prec int, fn func()) {
	if mine < prec {
		b.WriteByte('(')
		defer b.WriteByte(')')
	}
	fn()
}

func (e *Or) print(b *strings.Builder, prec int) {
	wrap(b, precOr, prec, func() {
		e.Left.print(b, precOr)
		b.WriteString(" OR ")
		e.Right.print(b, precOr+1)
	})
}

func (e *And) print(b *strings.Builder, prec int) {
	wrap(b, precAnd, prec, func() {
		e.Left.print(b, precAnd)
		b.WriteString(" AND ")
		e.Right.print(b, precAnd+1)
	})
}

func (e *Not) print(b *strings.Builder, prec int) {
	wrap(b, precNot, prec, func() {
		b.WriteString("NOT ")
		e.Expr.print(b, precNot)
	})
}

func (e *Compare) print(b *strings.Builder, _ int) {
	b.WriteString(e.Left.String() + " " + e.Op + " " + e.Right.String())
}

func (e *In) print(b *strings.Builder, _ int) {
	b.WriteString(e.Path.String())
	if e.Not {
		b.WriteString(" NOT")
	}
	b.WriteString(" IN [")
	for i, l := range e.List {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(l.String())
	}
	b.WriteByte(']')
}

func (e *Call) print(b *strings.Builder, _ int) {
	b.WriteString(e.Name + "(" + e.Path.String())
	if e.Name != "IS_DEFINED" {
		b.WriteString(", " + quote(e.Text))
	}
	b.WriteByte(')')
}

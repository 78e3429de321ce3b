package query

import (
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Parse reads a query. Errors are Invalid and say where.
func Parse(s string) (*Query, error) {
	toks, err := lex(s)
	if err != nil {
		return nil, err
	}
	p := &parser{toks: toks}
	q, err := p.query()
	if err != nil {
		return nil, err
	}
	return q, q.check()
}

type parser struct {
	toks  []token
	depth int
	terms int
}

func (p *parser) peek() token { return p.toks[0] }

// next takes a token; the last one, end, stays.
func (p *parser) next() token {
	t := p.toks[0]
	if t.kind != end {
		p.toks = p.toks[1:]
	}
	return t
}

// is reports whether the next token is the keyword or symbol, and takes it if so.
func (p *parser) is(val string) bool {
	t := p.peek()
	if t.kind == word && strings.EqualFold(t.val, val) || t.kind == symbol && t.val == val {
		p.next()
		return true
	}
	return false
}

// unserved names what Azure's language has and this subset has not.
var unserved = []string{"TOP", "DISTINCT", "ORDER", "JOIN", "LIKE", "BETWEEN", "HAVING", "LIMIT", "OFFSET", "UNION", "EXISTS", "AVG", "SUM", "MIN", "MAX", "CASE"}

// unexpected is the refusal of the next token.
func (p *parser) unexpected(want string) error {
	t := p.peek()
	if t.kind == word && slices.ContainsFunc(unserved, func(u string) bool { return strings.EqualFold(u, t.val) }) {
		return refuse(t.at, "%s is not served", strings.ToUpper(t.val)).WithHint("docs/operating/hub.md lists what is")
	}
	return refuse(t.at, "expected %s, found %s", want, t)
}

func (t token) String() string {
	if t.kind == end {
		return "the end"
	}
	if t.kind == text {
		return quote(t.val)
	}
	return t.val
}

func (p *parser) want(val string) error {
	if !p.is(val) {
		return p.unexpected(val)
	}
	return nil
}

// term counts what a query is made of.
func (p *parser) term() error {
	if p.terms++; p.terms > MaxTerms {
		return refuse(p.peek().at, "a query has at most %d terms", MaxTerms)
	}
	return nil
}

func (p *parser) query() (*Query, error) {
	q := new(Query)
	if err := p.want("SELECT"); err != nil {
		return nil, err
	}
	if q.All = p.is("*"); !q.All {
		for more := true; more; more = p.is(",") {
			it, err := p.item()
			if err != nil {
				return nil, err
			}
			q.Items = append(q.Items, it)
		}
	}
	if err := p.want("FROM"); err != nil {
		return nil, err
	}
	var err error
	if q.From, err = p.source(); err != nil {
		return nil, err
	}
	if p.is("WHERE") {
		if q.Where, err = p.or(); err != nil {
			return nil, err
		}
	}
	if p.is("GROUP") {
		if err := p.want("BY"); err != nil {
			return nil, err
		}
		for more := true; more; more = p.is(",") {
			path, err := p.path()
			if err != nil {
				return nil, err
			}
			q.Group = append(q.Group, path)
		}
	}
	if p.peek().kind != end {
		return nil, p.unexpected("the end")
	}
	return q, nil
}

func (p *parser) source() (Source, error) {
	t := p.peek()
	if !p.is("devices") {
		return "", p.unexpected("devices or devices.modules")
	}
	if !p.is(".") {
		return Devices, nil
	}
	if !p.is("modules") {
		return "", refuse(t.at, "devices.%s cannot be queried, only devices and devices.modules", p.peek())
	}
	return Modules, nil
}

func (p *parser) item() (it Item, err error) {
	if p.follows("(") {
		t := p.next()
		if !strings.EqualFold(t.val, "COUNT") {
			return it, refuse(t.at, "function %s is not served here, only COUNT()", strings.ToUpper(t.val))
		}
		p.next()
		p.is("*")
		if err := p.want(")"); err != nil {
			return it, err
		}
		it.Count = true
		err = p.term()
	} else {
		it.Path, err = p.path()
	}
	if err == nil && p.is("AS") {
		t := p.next()
		if t.kind != word {
			return it, refuse(t.at, "expected a name, found %s", t)
		}
		it.Name = t.val
	}
	return it, err
}

// follows reports whether a word comes next, and then the symbol.
func (p *parser) follows(sym string) bool {
	return p.peek().kind == word && p.toks[1].kind == symbol && p.toks[1].val == sym
}

func (p *parser) path() (Path, error) {
	t := p.peek()
	if t.kind != word {
		return nil, p.unexpected("a property")
	}
	i := slices.IndexFunc(Roots, func(r string) bool { return strings.EqualFold(r, t.val) })
	if i < 0 {
		if slices.ContainsFunc(unserved, func(u string) bool { return strings.EqualFold(u, t.val) }) {
			return nil, p.unexpected("a property")
		}
		return nil, refuse(t.at, "devices have no %.64q", t.val).WithHint("a property begins with one of %s", strings.Join(Roots, ", "))
	}
	p.next()
	path := Path{Roots[i]}
	for {
		switch {
		case p.is("."):
			n := p.next()
			if n.kind != word {
				return nil, refuse(n.at, "expected a property's name, found %s", n)
			}
			path = append(path, n.val)
		case p.peek().kind == symbol && p.peek().val == "[" && p.toks[1].kind != end:
			p.next()
			n := p.next()
			if n.kind != text {
				return nil, refuse(n.at, "expected a property's name in quotes, found %s: elements of arrays are not served", n)
			}
			if err := p.want("]"); err != nil {
				return nil, err
			}
			path = append(path, n.val)
		default:
			if len(path) > MaxDepth {
				return nil, refuse(t.at, "property is nested deeper than %d", MaxDepth)
			}
			return path, p.term()
		}
	}
}

func (p *parser) or() (Expr, error) {
	left, err := p.and()
	for err == nil && p.is("OR") {
		var right Expr
		right, err = p.and()
		left = &Or{left, right}
	}
	return left, err
}

func (p *parser) and() (Expr, error) {
	left, err := p.not()
	for err == nil && p.is("AND") {
		var right Expr
		right, err = p.not()
		left = &And{left, right}
	}
	return left, err
}

func (p *parser) not() (Expr, error) {
	at := p.peek().at
	if p.depth++; p.depth > MaxDepth {
		return nil, refuse(at, "conditions are nested deeper than %d", MaxDepth)
	}
	defer func() { p.depth-- }()
	if p.is("NOT") {
		e, err := p.not()
		return &Not{e}, err
	}
	if p.is("(") {
		e, err := p.or()
		if err == nil {
			err = p.want(")")
		}
		return e, err
	}
	if p.follows("(") {
		return p.call()
	}
	return p.comparison()
}

func (p *parser) call() (Expr, error) {
	t := p.next()
	name := strings.ToUpper(t.val)
	switch name {
	case "STARTS_WITH", "ENDS_WITH":
		name = strings.Replace(name, "_", "", 1)
	}
	if !slices.Contains(Functions, name) {
		return nil, refuse(t.at, "function %s is not served", name).WithHint("the functions are %s", strings.Join(Functions, ", "))
	}
	p.next()
	path, err := p.path()
	if err != nil {
		return nil, err
	}
	c := &Call{Name: name, Path: path}
	if name != "IS_DEFINED" {
		if err := p.want(","); err != nil {
			return nil, err
		}
		a := p.next()
		if a.kind != text {
			return nil, refuse(a.at, "expected a text in quotes, found %s", a)
		}
		c.Text = a.val
	}
	return c, p.want(")")
}

func (p *parser) comparison() (Expr, error) {
	at := p.peek().at
	left, err := p.operand()
	if err != nil {
		return nil, err
	}
	not := p.is("NOT")
	if p.is("IN") {
		if left.Path == nil {
			return nil, refuse(at, "IN asks about a property, not about a literal")
		}
		return p.in(left.Path, not)
	}
	if not {
		return nil, p.unexpected("IN")
	}
	t := p.peek()
	if t.kind != symbol || !slices.Contains([]string{"=", "!=", "<", ">", "<=", ">="}, t.val) {
		return nil, p.unexpected("a comparison")
	}
	p.next()
	right, err := p.operand()
	if err == nil && left.Path == nil && right.Path == nil {
		err = refuse(at, "this compares two literals")
	}
	return &Compare{left, t.val, right}, err
}

func (p *parser) in(path Path, not bool) (Expr, error) {
	open := p.peek()
	closing := "]"
	if p.is("(") {
		closing = ")"
	} else if !p.is("[") {
		return nil, p.unexpected("[")
	}
	e := &In{Path: path, Not: not}
	for more := true; more; more = p.is(",") {
		at := p.peek().at
		l, ok := p.literal()
		if !ok {
			return nil, refuse(at, "expected a literal, found %s", p.peek())
		}
		if err := p.term(); err != nil {
			return nil, err
		}
		e.List = append(e.List, l)
	}
	if len(e.List) == 0 {
		return nil, refuse(open.at, "an empty list")
	}
	return e, p.want(closing)
}

func (p *parser) operand() (Operand, error) {
	if l, ok := p.literal(); ok {
		return Operand{Literal: l}, p.term()
	}
	path, err := p.path()
	return Operand{Path: path}, err
}

// literal takes one if it comes next.
func (p *parser) literal() (Literal, bool) {
	switch t := p.peek(); t.kind {
	case text:
		p.next()
		return Literal{t.val}, true
	case number:
		p.next()
		return Literal{Number(t.val)}, true
	case word:
		for name, v := range map[string]any{"true": true, "false": false, "null": nil} {
			if strings.EqualFold(t.val, name) {
				p.next()
				return Literal{v}, true
			}
		}
	}
	return Literal{}, false
}

// check holds the parts against each other.
func (q *Query) check() error {
	counts := 0
	columns := map[string]bool{}
	for _, it := range q.Items {
		if it.Count {
			counts++
		}
		if columns[it.Column()] {
			return cradle.Errorf(cradle.Invalid, "query: two columns are named %.64q", it.Column()).WithHint("name one by AS")
		}
		columns[it.Column()] = true
	}
	switch {
	case counts > 1:
		return cradle.Errorf(cradle.Invalid, "query: COUNT() stands there twice")
	case q.All && len(q.Group) > 0:
		return cradle.Errorf(cradle.Invalid, "query: SELECT * cannot be grouped")
	}
	if counts == 0 && len(q.Group) == 0 {
		return nil
	}
	for _, it := range q.Items {
		if !it.Count && !slices.ContainsFunc(q.Group, func(p Path) bool { return slices.Equal(p, it.Path) }) {
			return cradle.Errorf(cradle.Invalid, "query: %s is selected but not in GROUP BY", it.Path)
		}
	}
	return nil
}

package query

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
)

// Limits of a query.
const (
	MaxLen   = 16 << 10 // bytes
	MaxDepth = 32       // of parentheses and NOTs
	MaxTerms = 256      // comparisons, literals of lists, items and group columns together
)

type kind int

const (
	end    kind = iota
	word        // name or keyword
	text        // quoted; val is what it means
	number      // as written
	symbol      // one of = != < > <= >= ( ) [ ] , . *
)

type token struct {
	kind kind
	val  string
	at   int // byte offset
}

func refuse(at int, format string, args ...any) *cradle.Error {
	e := cradle.Errorf(cradle.Invalid, format, args...)
	return cradle.Errorf(cradle.Invalid, "query, at character %d: %s", at+1, e.Detail)
}

// lex splits the whole query.
func lex(s string) ([]token, error) {
	if len(s) > MaxLen {
		return nil, cradle.Errorf(cradle.Invalid, "query has %d bytes, at most %d", len(s), MaxLen)
	}
	if !utf8.ValidString(s) {
		return nil, cradle.Errorf(cradle.Invalid, "query is not UTF-8")
	}
	var out []token
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			continue
		case isNameStart(c):
			j := i + 1
			for j < len(s) && isName(s[j]) {
				j++
			}
			out = append(out, token{word, s[i:j], i})
			i = j
		case isDigit(c) || c == '-' && i+1 < len(s) && isDigit(s[i+1]):
			j := endOfNumber(s, i)
			if j < len(s) && isNameStart(s[j]) {
				return nil, refuse(i, "%.40q is neither a number nor a name", s[i:j+1])
			}
			if _, err := strconv.ParseFloat(s[i:j], 64); err != nil {
				return nil, refuse(i, "%.40s is too large a number", s[i:j])
			}
			out = append(out, token{number, s[i:j], i})
			i = j
		case c == '\'' || c == '"':
			v, j, err := quoted(s, i)
			if err != nil {
				return nil, err
			}
			out = append(out, token{text, v, i})
			i = j
		default:
			n := 1
			if i+1 < len(s) {
				switch s[i : i+2] {
				case "!=", "<>", "<=", ">=":
					n = 2
				}
			}
			v := s[i : i+n]
			switch v {
			case "<>":
				v = "!="
			case "=", "!=", "<", ">", "<=", ">=", "(", ")", "[", "]", ",", ".", "*":
			case "+", "-", "/", "%", "|", "&", "^", "~":
				return nil, refuse(i, "operator %q is not served", v)
			default:
				r, _ := utf8.DecodeRuneInString(s[i:])
				return nil, refuse(i, "character %q has no meaning here", r)
			}
			out = append(out, token{symbol, v, i})
			i += n
		}
	}
	return append(out, token{end, "", len(s)}), nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isNameStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '$'
}

func isName(c byte) bool { return isNameStart(c) || isDigit(c) }

// endOfNumber finds the end of a JSON number that begins at i.
func endOfNumber(s string, i int) int {
	digits := func() {
		for i < len(s) && isDigit(s[i]) {
			i++
		}
	}
	if s[i] == '-' {
		i++
	}
	digits()
	if i+1 < len(s) && s[i] == '.' && isDigit(s[i+1]) {
		i++
		digits()
	}
	if i+1 < len(s) && (s[i] == 'e' || s[i] == 'E') {
		j := i + 1
		if j+1 < len(s) && (s[j] == '+' || s[j] == '-') {
			j++
		}
		if isDigit(s[j]) {
			i = j
			digits()
		}
	}
	return i
}

// quoted reads a text in either quote. A backslash stands before a quote or a backslash; a doubled quote is one.
func quoted(s string, at int) (string, int, error) {
	q := s[at]
	var b strings.Builder
	for i := at + 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			if i++; i == len(s) || s[i] != '\\' && s[i] != '\'' && s[i] != '"' {
				return "", 0, refuse(i-1, `a backslash stands before a quote or a backslash`)
			}
			b.WriteByte(s[i])
		case c == q && i+1 < len(s) && s[i+1] == q:
			b.WriteByte(q)
			i++
		case c == q:
			return b.String(), i + 1, nil
		case c < ' ':
			return "", 0, refuse(i, "control character in a text")
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, refuse(at, "this text has no closing quote")
}

// quote is the inverse of quoted.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

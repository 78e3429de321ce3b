package strictjson_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/strictjson"
)

// What is wrong is said without a word of Go, whoever decodes.
func TestReason(t *testing.T) {
	type terms struct {
		Hubs   []string       `json:"hubs"`
		Weight map[string]int `json:"weight"`
		On     bool           `json:"on"`
	}
	type body struct {
		terms
		Query string    `json:"query"`
		Key   []byte    `json:"key"`
		Small int8      `json:"small"`
		Count uint32    `json:"count"`
		Share float64   `json:"share"`
		Of    *terms    `json:"of"`
		When  time.Time `json:"when"`
	}
	for text, want := range map[string]string{
		`{"query":1}`:             `"query" is a number, not a string`,
		`{"query":[]}`:            `"query" is an array, not a string`,
		`{"hubs":"a"}`:            `"hubs" is a string, not an array`,
		`{"of":{"hubs":[true]}}`:  `"hubs" is a boolean, not a string`,
		`{"of":3}`:                `"of" is a number, not an object`,
		`{"on":null,"weight":[]}`: `"weight" is an array, not an object`,
		`{"on":"yes"}`:            `"on" is a string, not a boolean`,
		`{"small":300}`:           `"small" is a number 300, not a whole number that fits`,
		`{"count":-1}`:            `"count" is a number -1, not a whole number that fits, of 0 or more`,
		`{"share":"1"}`:           `"share" is a string, not a number that fits`,
		`{"key":5}`:               `"key" is a number, not a string of base64`,
		`[]`:                      `it is an array, not an object`,
		`{"query":"x"`:            `it ends before the value does`,
		``:                        `it ends before the value does`,
		`{"query":x}`:             `after 10 bytes: invalid character 'x' looking for beginning of value`,
		`{"when":"yesterday"}`:    `"yesterday" is not a time as RFC 3339 has it`,
		`{"never":1}`:             `unknown field "never"`,
		`{"key":"%"}`:             `illegal base64 data at input byte 0`,
	} {
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := strictjson.Reason(d.Decode(new(body))); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	if strictjson.Reason(nil) != nil {
		t.Error("a reason for nothing")
	}
}

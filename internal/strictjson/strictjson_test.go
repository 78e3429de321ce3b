package strictjson_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/strictjson"
)

type inner struct {
	A string `json:"a"`
}

type message struct {
	inner
	Name  string           `json:"name"`
	List  []inner          `json:"list,omitempty"`
	Map   map[string]inner `json:"map,omitempty"`
	Raw   json.RawMessage  `json:"raw,omitempty"`
	Time  *time.Time       `json:"time,omitempty"`
	Bytes []byte           `json:"bytes,omitempty"`
	Hide  string           `json:"-"`
	Plain int
}

func TestUnmarshal(t *testing.T) {
	for _, good := range []string{`{}`, `{"name":"x","a":"y"}`, `{"list":[{"a":"1"},{"a":"2"}]}`, `{"map":{"K":{"a":"1"},"k":{"a":"2"}}}`, `{"raw":{"Any":[{"x":1}]}}`, ` {"time":"2026-01-01T00:00:00Z"} `,
		`{"bytes":"AAAA","Plain":3}`, `null`, `{"list":null}`} {
		var m, want message
		if err := strictjson.Unmarshal([]byte(good), &m); err != nil {
			t.Errorf("%s: %v", good, err)
		}
		if err := json.Unmarshal([]byte(good), &want); err != nil || !reflect.DeepEqual(m, want) {
			t.Errorf("%s: %+v, want %+v", good, m, want)
		}
	}
	for bad, why := range map[string]string{
		``: "ends", `{`: "ends", `[]`: "array", `{"name":1}`: "number", `{"Name":"x"}`: "unknown", `{"NAME":"x","name":"y"}`: "unknown", `{"name":"x","name":"x"}`: "twice",
		`{"nam\u0065":"x","name":"y"}`: "twice", `{"list":[{"A":"1"}]}`: "unknown", `{"map":{"k":{"A":"1"}}}`: "unknown", `{"map":{"k":{},"k":{}}}`: "twice",
		`{"raw":{"x":1,"x":2}}`: "twice", `{"Hide":"x"}`: "unknown", `{"-":"x"}`: "unknown", `{"plain":3}`: "unknown", `{} {}`: "follows", `{}x`: "follows", `{"name":"x",}`: "",
		`{"raw":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`: "deeper", strings.Repeat(`[`, 1<<20): "deeper", `{"ſ":1}`: "unknown", `{"liſt":[]}`: "unknown",
	} {
		var m message
		if err := strictjson.Unmarshal([]byte(bad), &m); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.80s: %v, want %q", bad, err, why)
		}
	}
}

// FuzzUnmarshal: what is accepted encodes to what is accepted and means the same, and is what the standard package reads.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{`{"name":"x","list":[{"a":"1"}],"raw":{"x":[1]},"map":{"k":{}}}`, `{"name":"x","Name":"y"}`, `{"raw":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, std message
		if strictjson.Unmarshal(b, &m) != nil {
			return
		}
		if err := json.Unmarshal(b, &std); err != nil || !reflect.DeepEqual(m, std) {
			t.Fatalf("%q: %+v, the standard package: %+v, %v", b, m, std, err)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var m2 message
		if err := strictjson.Unmarshal(again, &m2); err != nil {
			t.Fatalf("%q was accepted, %q not: %v", b, again, err)
		}
	})
}

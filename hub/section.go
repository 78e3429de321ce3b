package hub

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Section is the tags, the desired or the reported properties of a twin.
type Section struct {
	Values  map[string]any // as iothub.ParseSection makes it: maps, slices, strings, json.Number, booleans; no nil but inside arrays
	Meta    map[string]any // when and in which version each property was last written; unused in tags
	Version int64          // grows with every write; the empty section has 1
}

// Names that the hub sets in a section; what a client sends in them is ignored.
const (
	keyVersion     = "$version"
	keyMetadata    = "$metadata"
	keyLastUpdated = "$lastUpdated"
	keyLastVersion = "$lastUpdatedVersion"
)

// stamp is what the metadata of a written property say.
type stamp struct {
	at      string
	version int64 // of the desired properties; 0 leaves it out
}

func newStamp(now time.Time, version int64) stamp {
	return stamp{now.UTC().Format(time.RFC3339Nano), version}
}

func (s stamp) set(meta map[string]any) {
	meta[keyLastUpdated] = s.at
	if s.version != 0 {
		meta[keyLastVersion] = s.version
	}
}

// merge applies an RFC 7396 merge patch to values, in place, and keeps meta (nil: none is kept) in step.
func merge(values, meta map[string]any, patch map[string]any, s stamp) {
	if meta != nil {
		s.set(meta)
	}
	for k, v := range patch {
		sub, isObject := v.(map[string]any)
		switch {
		case v == nil:
			delete(values, k)
			if meta != nil {
				delete(meta, k)
			}
			continue
		case isObject:
			under, ok := values[k].(map[string]any)
			if !ok {
				under = map[string]any{}
				values[k] = under
				if meta != nil {
					meta[k] = map[string]any{}
				}
			}
			var m map[string]any
			if meta != nil {
				m = child(meta, k)
			}
			merge(under, m, sub, s)
		default:
			values[k] = v
			if meta != nil {
				m := map[string]any{}
				s.set(m)
				meta[k] = m
			}
		}
	}
}

func child(meta map[string]any, k string) map[string]any {
	m, ok := meta[k].(map[string]any)
	if !ok {
		m = map[string]any{}
		meta[k] = m
	}
	return m
}

// change returns the merge patch that makes to of from. The empty object inside from that to lacks is deleted like
// any other value; what is equal stands not in it.
func change(from, to map[string]any) map[string]any {
	patch := map[string]any{}
	for k := range from {
		if _, ok := to[k]; !ok {
			patch[k] = nil
		}
	}
	for k, v := range to {
		old, had := from[k]
		if had && equal(old, v) {
			continue
		}
		a, ok1 := old.(map[string]any)
		b, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			patch[k] = change(a, b)
		} else {
			patch[k] = v
		}
	}
	return patch
}

func equal(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			w, ok := b[k]
			if !ok || !equal(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equal(a[i], b[i]) {
				return false
			}
		}
		return true
	}
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return a == b
}

// apply writes a patch into the section, or replaces its values by it, and checks that it still fits. (It cannot be
// nested deeper than it or the patch was.)
func (s *Section) apply(what string, patch map[string]any, replace bool, limit int, now time.Time, versioned bool) error {
	st := newStamp(now, 0)
	if versioned {
		st.version = s.Version + 1
	}
	if replace {
		s.Values = map[string]any{}
		if s.Meta != nil {
			s.Meta = map[string]any{}
		}
	}
	merge(s.Values, s.Meta, patch, st)
	if n := iothub.SectionSize(s.Values); n > limit {
		return cradle.Errorf(cradle.TooLarge, "%s would have %d bytes, at most %d", what, n, limit)
	}
	s.Version++
	return nil
}

// encode is the section as JSON, with what the hub adds.
func (s *Section) encode(version, meta bool) json.RawMessage {
	out := make(map[string]any, len(s.Values)+2)
	for k, v := range s.Values {
		out[k] = v
	}
	if version {
		out[keyVersion] = s.Version
	}
	if meta {
		out[keyMetadata] = s.Meta
	}
	return encodeJSON(out)
}

// encodeJSON writes values of ParseSection, which always can be.
func encodeJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("internal error: " + err.Error())
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

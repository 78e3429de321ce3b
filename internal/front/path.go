package front

import (
	"net/http"
	"path"

	"github.com/cradle-iot/cradle"
)

// CheckPath refuses a path that http.ServeMux would clean, and answer with a redirect: one with an empty segment, "." or
// "..". What was meant by it nobody knows, and devices follow no redirects.
func CheckPath(r *http.Request) error {
	p := r.URL.EscapedPath()
	if clean := path.Clean(p); p == clean || p == clean+"/" {
		return nil
	}
	return cradle.Errorf(cradle.Invalid, "the path %.200q has an empty segment, or one that is . or ..", p).
		WithHint("a name that is . or .. is written %%2E or %%2E%%2E")
}

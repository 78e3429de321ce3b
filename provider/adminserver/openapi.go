package adminserver

import (
	"encoding/json"
	"net/http"
	"path"
	"reflect"
	"regexp"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// path is the route's path as it is served.
func (o *op) path() string {
	_, p, _ := strings.Cut(o.pattern, " ")
	if o.need == anyone {
		return p
	}
	return admin.Prefix + p
}

var pathName = regexp.MustCompile(`\{([a-z_]+)\.*\}`)

// document makes the OpenAPI 3.1 document from the routes and the Go types of their messages.
func (s *Server) document() ([]byte, error) {
	schemas := huma.NewMapRegistry("#/components/schemas/", schemaName)
	problem := map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(reflect.TypeFor[admin.Problem](), true, "")}}
	doc := &huma.OpenAPI{OpenAPI: "3.1.0",
		Info: &huma.Info{Title: "Cradle credential provider", Version: "1",
			Description: "Admin API, status feed and the calls of an OEM's line. Every refusal is a Problem."},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}}}
	for _, o := range s.ops {
		h := &huma.Operation{Method: o.method(), Path: strings.ReplaceAll(o.path(), "...}", "}"), Summary: o.does, Security: []map[string][]string{}}
		if o.need != anyone {
			h.Security = append(h.Security, map[string][]string{"token": {}})
			h.Description = "Roles: " + strings.Join(rolesWith(o.need), ", ") + "."
			if o.scope == installation {
				h.Description += " Not with the token of one account."
			}
		}
		for _, m := range pathName.FindAllStringSubmatch(o.pattern, -1) {
			h.Parameters = append(h.Parameters, &huma.Param{Name: m[1], In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
		}
		ok := &huma.Response{Description: "Done."}
		switch {
		case o.stream != "":
			ok.Content = map[string]*huma.MediaType{o.stream: {}}
		case o.out != reflect.TypeFor[none]():
			ok.Content = map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(o.out, true, "")}}
		}
		switch {
		case o.in == reflect.TypeFor[none]():
		case h.Method == http.MethodGet || h.Method == http.MethodDelete:
			for _, f := range reflect.VisibleFields(o.in) {
				if name := f.Tag.Get("query"); name != "" {
					h.Parameters = append(h.Parameters, &huma.Param{Name: name, In: "query", Description: f.Tag.Get("doc"), Schema: schemas.Schema(f.Type, true, "")})
				}
			}
		default:
			h.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(o.in, true, "")}}}
		}
		h.Responses = map[string]*huma.Response{"200": ok, "default": {Description: "Refused.", Content: problem}}
		doc.AddOperation(h)
	}
	return json.Marshal(doc)
}

func rolesWith(need right) []string {
	var out []string
	for _, r := range admin.Roles {
		if authorize(caller{role: r}, need, everywhere, "") == nil {
			out = append(out, string(r))
		}
	}
	return out
}

// schemaName keeps messages of different packages apart: Order is admin's, OrderStatus is order.Status.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	name := huma.DefaultSchemaNamer(t, hint)
	if pkg := path.Base(t.PkgPath()); pkg != "admin" && pkg != "." && pkg != path.Base(reflect.TypeFor[cradle.Kind]().PkgPath()) {
		name = strings.ToUpper(pkg[:1]) + pkg[1:] + name
	}
	return name
}

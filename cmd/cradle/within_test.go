package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Requests within the process are those that a server gets.
func TestWithin(t *testing.T) {
	w := newWithin()
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /devices/{id}", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 10))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		w.Header().Set("ETag", r.PathValue("id")+" "+r.URL.Query().Get("v")+" "+r.Host+" "+r.RequestURI+" "+r.Header.Get("If-Match"))
		w.WriteHeader(http.StatusCreated)
		w.Write(b)
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("ouch") })
	w.serve(mux)
	ask := func(method, path, body string) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, "https://hub.example:8443"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-Match", "*")
		resp, err := w.client().Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	resp, b, err := ask("PUT", "/devices/a%2Fb?v=1", "hello")
	if err != nil || resp.StatusCode != 201 || b != "hello" || resp.Header.Get("ETag") != "a/b 1 hub.example:8443 /devices/a%2Fb?v=1 *" {
		t.Errorf("got %+v %q %v", resp, b, err)
	}
	if resp, b, err := ask("PUT", "/devices/a", "far too large a body"); err != nil || resp.StatusCode != 413 {
		t.Errorf("got %+v %q %v", resp, b, err)
	}
	if resp, _, err := ask("GET", "/nothing", ""); err != nil || resp.StatusCode != 404 {
		t.Errorf("got %+v %v", resp, err)
	}
	if _, _, err := ask("GET", "/panic", ""); err == nil || !strings.Contains(err.Error(), "ouch") {
		t.Errorf("got %v", err)
	}
}

// Before there is anybody who answers, requests wait, and end with their context.
func TestWithinEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWithin()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "https://hub.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, func() { w.serve(http.NotFoundHandler()) })
		if resp, err := w.RoundTrip(req.WithContext(t.Context())); err != nil || resp.StatusCode != 404 {
			t.Errorf("got %v %v", resp, err)
		}
	})
}

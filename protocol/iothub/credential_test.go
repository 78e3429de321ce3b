package iothub_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// FuzzCredentialRequest: what parses is within the bounds and is read the same when it is written again; what does not
// has a code of 400.
func FuzzCredentialRequest(f *testing.F) {
	for _, s := range []string{"", "{}", `{"id":"d","csr":"AAAA"}`, `{"id":"d","csr":"AAAA","replace":"*"}`, `{"id":"d","csr":"AAAA","replace":"db8c0f73-ac73"}`, `{"id":1}`, `["a"]`, `{"id":"d","csr":"!"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, code, err := iothub.ParseCredentialRequest([]byte(s))
		if err != nil {
			if q != nil || code/1000 != 400 || cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("%q: %v, %d, %v", s, q, code, err)
			}
			return
		}
		if q.ID == "" || base64.StdEncoding.EncodedLen(len(q.CSR)) > iothub.MaxCSR || q.Replace != "" && q.Replace != iothub.AnyRequest && !iothub.CheckCredentialID(q.Replace) {
			t.Fatalf("%q: %+v", s, q)
		}
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := iothub.ParseCredentialRequest(b)
		if err != nil || again.ID != q.ID || string(again.CSR) != string(q.CSR) || again.Replace != q.Replace {
			t.Fatalf("%q: %s: %+v, %v", s, b, again, err)
		}
	})
}

// FuzzCredentialTopic: a topic that parses names a request that can be answered.
func FuzzCredentialTopic(f *testing.F) {
	for _, s := range []string{iothub.CredentialTopic("123"), iothub.CredentialTopic(""), "$iothub/credentials/POST/issueCertificate/", "$iothub/credentials/POST/issueCertificate/?$rid=a%20b", iothub.CredentialTopic("a") + "&$version=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := iothub.ParseCredentialTopic(s)
		if err == nil && (!iothub.IsCredentialTopic(s) || !iothub.CheckCredentialID(id) || strings.ContainsAny(iothub.CredentialResponse("200", id), "+# ")) {
			t.Fatalf("%q: %q", s, id)
		}
		if err != nil && (id != "" || cradle.KindOf(err) != cradle.Invalid) {
			t.Fatalf("%q: %q, %v", s, id, err)
		}
	})
}

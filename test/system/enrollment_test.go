package system_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
	"github.com/cradle-iot/cradle/test/world"
)

// deviceAPI asks the provisioning service as a device without a certificate.
func deviceAPI(w *world.World, method, id, rest, token string, tpm *dps.TPM) (int, []byte, *dps.OperationStatus) {
	w.T.Helper()
	st := world.Decode[admin.Status](w.T, w.MustCradle("status"))
	body, err := json.Marshal(dps.DeviceRegistration{RegistrationID: id, TPM: tpm})
	if err != nil {
		w.T.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.T.Context(), method, w.URL()+"/"+st.IDScope+"/registrations/"+id+rest+"?api-version=2021-06-01", bytes.NewReader(body))
	if err != nil {
		w.T.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := w.HTTP(nil).Do(req)
	if err != nil {
		w.T.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.T.Fatal(err)
	}
	op := new(dps.OperationStatus)
	_ = json.Unmarshal(b, op)
	return resp.StatusCode, b, op
}

// TestUnitsByTPM: the units of an order come in by their TPMs alone, by one group; one whose lot waits is assigning.
func TestUnitsByTPM(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	no := false
	w := world.New(t, world.Options{AutoAccept: &no})
	w.Acts()
	v := verbs{t, w}
	g := v.one("cradle enrollment units Fleet --account "+world.Account+" --order "+world.Order, "group", "status", "etag")
	if g["group"] != "fleet" || g["status"] != "enabled" {
		t.Errorf("group %v", g)
	}
	v.bad(2, "--order", "cradle enrollment units fleet --account "+world.Account)
	v.bad(1, "no order", "cradle enrollment units others --account "+world.Account+" --order nosuch")
	v.bad(1, "no lot", "cradle enrollment units others --account "+world.Account+" --order "+world.Order+" --lot nosuch")
	v.bad(1, "no order", "cradle device list --account "+world.Account+" --order nosuch")
	v.bad(1, "no state", "cradle device list --account "+world.Account+" --state nosuch")
	unit := w.Personalise(1)[0]
	id := string(unit.ID)
	tpm := provisioningtest.OpenTPM(t, unit.TPM.Socket(), &tpm2.ECCEKTemplate, &tpm2.ECCSRKTemplate)
	keys := &dps.TPM{EndorsementKey: base64.StdEncoding.EncodeToString(tpm.EK), StorageRootKey: base64.StdEncoding.EncodeToString(tpm.SRK)}

	if status, b, _ := deviceAPI(w, "PUT", "somebody-else", "/register", "", keys); status != 401 || strings.Contains(string(b), id) {
		t.Errorf("a public key alone tells which unit it is: %d %s", status, b)
	}
	status, b, _ := deviceAPI(w, "PUT", id, "/register", "", keys)
	var c dps.Challenge
	if status != 401 || json.Unmarshal(b, &c) != nil || len(c.AuthenticationKey) == 0 {
		t.Fatalf("first call: %d %s", status, b)
	}
	if err := tpm.Activate(c.AuthenticationKey); err != nil {
		t.Fatal(err)
	}
	st := world.Decode[admin.Status](t, w.MustCradle("status"))
	token := tpm.Token(st.IDScope+"/registrations/"+id, "registration", time.Now().Add(time.Hour))
	status, b, op := deviceAPI(w, "PUT", id, "/register", token, keys)
	if status != 202 || op.Status != dps.Assigning {
		t.Fatalf("second call: %d %s", status, b)
	}
	poll := "/operations/" + op.OperationID
	if status, b, op := deviceAPI(w, "GET", id, poll, token, nil); status != 202 || op.Status != dps.Assigning {
		t.Errorf("poll before the lot is accepted: %d %s", status, b)
	}
	w.CloseLot()
	lot := world.Lines[admin.Lot](t, w.MustCradle("lot", "list", "--account", world.Account))[0]
	w.MustCradle("lot", "accept", string(lot.ID))
	var state *dps.RegistrationState
	w.Wait("the unit is assigned", time.Minute, func() (bool, string) {
		status, b, op := deviceAPI(w, "GET", id, poll, token, nil)
		if state = op.RegistrationState; status == 200 && op.Status == dps.Assigned {
			return true, ""
		}
		return false, string(b)
	})
	if state.TPM == nil || tpm.Activate(state.TPM.AuthenticationKey) != nil {
		t.Fatalf("no key for the hub: %+v", state)
	}
	cs, err := sas.ParseConnectionString(world.Decode[admin.ServiceKey](t, w.MustCradle("service-key", "show", "--service", "hub")).ConnectionString)
	if err != nil {
		t.Fatal(err)
	}
	d, err := iothub.NewRegistry(w.HTTP(nil), cs).GetDevice(t.Context(), unit.ID)
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(d.Authentication.SymmetricKey.PrimaryKey)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := sas.Parse(tpm.Token(state.AssignedHub+"/devices/"+id, "", time.Now().Add(time.Hour)))
	if err != nil || tok.Verify(key, time.Now()) != nil {
		t.Errorf("the TPM does not hold the hub's key: %v", err)
	}
	w.MustCradle("device", "revoke", id, "--reason", "keyCompromise")
	if status, b, _ := deviceAPI(w, "GET", id, poll, token, nil); status != 401 || !strings.Contains(string(b), "revoked") {
		t.Errorf("revoked: %d %s", status, b)
	}
}

// TestEnrollmentVerbs: many enrolments are imported, again, and from where it was stopped.
func TestEnrollmentVerbs(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{})
	v := verbs{t, w}
	w.MustCradle("account", "create", world.Account)
	v.bad(1, "there is no account", "cradle enrollment units fleet --account nosuch --order o")
	v.bad(1, "there is no account", "cradle enrollment create dev-1 --account nosuch --key-out @/key")
	const n = 3500
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, `{"registrationId":"dev-%05d","attestation":{"type":"symmetricKey"}}`+"\n", i)
	}
	w.Write("many.jsonl", lines.String()+`{"registrationId":"bad one","attestation":{"type":"symmetricKey"}}`+"\n")
	v.bad(1, "registration id \"bad one\"", "cradle enrollment import @/many.jsonl --account acme")
	b, err := os.ReadFile(w.Path("many.jsonl.import"))
	if err != nil {
		t.Fatal(err)
	}
	var half struct{ Lines int }
	if err := json.Unmarshal(b, &half); err != nil || half.Lines != 3000 {
		t.Errorf("what is kept of an import that was stopped: %+v %v", half, err)
	}
	// Mended, it is another file: what is there stays as it is.
	w.Write("many.jsonl", lines.String())
	if r := last(v.ok("cradle enrollment import @/many.jsonl --account acme", "file", "lines")); r["done"] != true || r["added"] != 500.0 || r["present"] != 3000.0 {
		t.Errorf("again: %v", r)
	}
	if _, err := os.Stat(w.Path("many.jsonl.import")); !os.IsNotExist(err) {
		t.Errorf("something is left of an import that is done: %v", err)
	}
	w.Write("resumed.jsonl", lines.String())
	w.Write("resumed.jsonl.import", fmt.Sprintf(`{"sha256":%q,"size":%d,"lines":3400}`, digestOf(lines.String()), lines.Len()))
	if r := last(v.ok("cradle enrollment import @/resumed.jsonl")); r["first"] != 3401.0 || r["present"] != 100.0 || r["lines"] != 3500.0 {
		t.Errorf("resumed: %v", r)
	}
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	w.Write("few.CSV", "registrationId,primaryKey,deviceId,provisioningStatus\nCSV-1,"+key+",Lamp-1,disabled\ncsv-2,,,\n")
	if r := last(v.ok("cradle enrollment import @/few.CSV")); r["added"] != 2.0 {
		t.Errorf("CSV: %v", r)
	}
	w.Write("wrong.csv", "registrationId,colour\na,b\n")
	v.bad(1, "colour", "cradle enrollment import @/wrong.csv")
	w.Write("wrong.jsonl", "{}\nhello\n")
	v.bad(1, "line 1", "cradle enrollment import @/wrong.jsonl")
	v.bad(2, "", "cradle enrollment import @/none.jsonl")

	if e := v.one("cradle enrollment show CSV-1", "registration_id", "attestation", "status", "created", "updated", "etag"); e["device_id"] != "Lamp-1" || e["status"] != "disabled" {
		t.Errorf("show: %v", e)
	}
	if rows := v.ok("cradle enrollment list", "registration_id", "attestation", "status"); len(rows) != n+2 || rows[0]["registration_id"] != "csv-1" || rows[n+1]["account"] != "acme" {
		t.Errorf("list: %d rows, the first %v", len(rows), rows[0])
	}
	v.one("cradle enrollment delete csv-2", "registration_id")
	v.bad(1, "does not exist", "cradle enrollment show csv-2")

	// Keys and tokens with fewer rights than the owner's.
	tok := v.one("cradle service-token --rights enrollmentRead --ttl 10m --name ci", "token", "rights", "expiry")
	v.bad(1, "no such right", "cradle service-token --rights everything")
	v.bad(1, "a token lives", "cradle service-token --rights enrollmentRead --ttl 9000h")
	cs, err := sas.ParseConnectionString(v.one("cradle service-key show --service dps --policy enrollmentRead", "connection_string")["connection_string"].(string))
	if err != nil {
		t.Fatal(err)
	}
	v.bad(1, "does not exist", "cradle service-key show --service dps --policy root")
	v.bad(2, "--policy", "cradle service-key show --service hub --policy enrollmentRead")
	for name, auth := range map[string]string{"token": "Bearer " + tok["token"].(string), "policy": cs.Token(time.Now(), time.Hour)} {
		for method, want := range map[string]int{"GET": 200, "DELETE": 401} {
			req, err := http.NewRequestWithContext(t.Context(), method, w.URL()+"/enrollments/dev-00001?api-version=2021-10-01", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", auth)
			resp, err := w.HTTP(nil).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s with a %s that may read: %d, want %d", method, name, resp.StatusCode, want)
			}
		}
	}
}

func last(rows []map[string]any) map[string]any { return rows[len(rows)-1] }

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

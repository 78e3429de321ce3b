package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// EnrollmentImportCmd adds many individual enrolments.
type EnrollmentImportCmd struct {
	Operator
	File    string `arg:"" help:"JSON lines, each an individualEnrollment of Azure's service API; or (by its name, *.csv) CSV with a header: registrationId and any of deviceId, primaryKey, secondaryKey, endorsementKey, storageRootKey, certificate, secondaryCertificate, iotHubHostName, provisioningStatus, account." type:"existingfile"`
	Account string `help:"Account of those that name none: its status feed may block them." placeholder:"NAME"`
	Again   bool   `help:"Begin at the first line although an earlier import of this file got further."`
}

// importReport is the result, and with --json also the progress.
type importReport struct {
	File    string  `json:"file"`
	Lines   int     `json:"lines"`   // done, from the beginning of the file
	Added   int     `json:"added"`   // by this run
	Present int     `json:"present"` // were enrolled already, and stay as they were
	Done    bool    `json:"done"`
	Seconds float64 `json:"seconds"`
	// First is the line at which this run began.
	First int `json:"first"`
}

// resume is how far an earlier import of the same file got; it stands beside the file until the import is done.
type resume struct {
	Digest string `json:"sha256"` // of the file's first MB
	Size   int64  `json:"size"`
	Lines  int    `json:"lines"` // all of them are stored
}

const (
	importRows  = 1000 // in one request, which is one transaction
	importAhead = 3    // requests under way
)

// batch is what one request carries: the rows up to a line.
type batch struct {
	rows []json.RawMessage
	size int
	last int // line
	done chan sent
}

// sent is what became of it.
type sent struct {
	dps.ImportResult
	err error
}

// Run implements the verb. Whatever happens, running it again goes on where it stopped: what was stored twice is there once.
func (c *EnrollmentImportCmd) Run(ctx context.Context, out *cli.Out) error {
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	f, err := os.Open(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	defer f.Close()
	state, err := c.earlier(f)
	if err != nil {
		return err
	}
	began := time.Now()
	rep := importReport{File: c.File, Lines: state.Lines, First: state.Lines + 1}
	show := func(end bool) error {
		rep.Done, rep.Seconds = end, time.Since(began).Seconds()
		if out.JSON {
			return out.Print(rep, nil)
		}
		if !end {
			_, err := fmt.Fprintf(out.Err, "%d lines (%.0f a second)\n", rep.Lines, float64(rep.Added+rep.Present)/max(rep.Seconds, 0.001))
			return err
		}
		return out.Print(nil, func(w io.Writer) {
			fmt.Fprintf(w, "%d lines of %s: %d enrolled, %d were enrolled already; %.1f s\n", rep.Lines, c.File, rep.Added, rep.Present, rep.Seconds)
		})
	}
	// Requests overlap; their answers are taken in order, so that what counts as done has no gap before it.
	queue := make(chan *batch, importAhead)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var readErr error
	go func() {
		defer close(queue)
		readErr = c.batches(f, state.Lines, func(b *batch) error {
			b.done = make(chan sent, 1)
			select {
			case queue <- b:
			case <-reading.Done():
				return reading.Err()
			}
			go func() {
				r, err := sendBatch(reading, svc, b)
				b.done <- sent{r, err}
			}()
			return nil
		})
	}()
	told := began
	save := func() error { return durable.WriteFile(c.resumeFile(), indent(state), 0o600) }
	var failed error
	for b := range queue {
		answer := <-b.done
		if failed != nil {
			continue
		}
		if failed = answer.err; failed != nil {
			stop()
			continue
		}
		rep.Added, rep.Present, rep.Lines, state.Lines = rep.Added+answer.Added, rep.Present+answer.Present, b.last, b.last
		if time.Since(told) >= time.Second {
			told = time.Now()
			if failed = errors.Join(save(), show(false)); failed != nil {
				stop()
			}
		}
	}
	if failed == nil {
		failed = readErr
	}
	if failed != nil {
		if err := save(); err != nil {
			return errors.Join(failed, err)
		}
		return fmt.Errorf("after line %d: %w", state.Lines, failed)
	}
	if err := os.Remove(c.resumeFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return show(true)
}

// sendBatch waits for a service that is busy: an import has time.
func sendBatch(ctx context.Context, svc *dps.Service, b *batch) (dps.ImportResult, error) {
	for try := 0; ; try++ {
		r, err := svc.Import(ctx, b.rows)
		if cradle.KindOf(err) != cradle.Busy || try == 10 {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(max(dps.RetryAfter(err), time.Second)):
		}
	}
}

func (c *EnrollmentImportCmd) resumeFile() string { return c.File + ".import" }

// earlier finds how far an import of this very file got.
func (c *EnrollmentImportCmd) earlier(f *os.File) (*resume, error) {
	h := sha256.New()
	if _, err := io.CopyN(h, f, 1<<20); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	now := &resume{Digest: hex.EncodeToString(h.Sum(nil)), Size: st.Size()}
	var before resume
	if err := readJSON(c.resumeFile(), &before); err == nil && before.Digest == now.Digest && before.Size == now.Size && !c.Again {
		now.Lines = before.Lines
	}
	return now, nil
}

// batches reads the file behind the first skip lines.
func (c *EnrollmentImportCmd) batches(f io.Reader, skip int, send func(*batch) error) error {
	b := new(batch)
	add := func(line int, e *dps.Enrollment, raw json.RawMessage) error {
		if raw == nil || c.Account != "" && e.Account == "" {
			if c.Account != "" && e.Account == "" {
				e.Account = c.Account
			}
			var err error
			if raw, err = json.Marshal(e); err != nil {
				return err
			}
		}
		if len(b.rows) == importRows || b.size+len(raw)+1 > dps.MaxImport {
			if err := send(b); err != nil {
				return err
			}
			b = new(batch)
		}
		b.rows, b.size, b.last = append(b.rows, raw), b.size+len(raw)+1, line
		return nil
	}
	var err error
	if strings.EqualFold(filepath.Ext(c.File), ".csv") {
		err = readCSV(f, skip, add)
	} else {
		err = readLines(f, skip, add)
	}
	if err == nil && len(b.rows) > 0 {
		err = send(b)
	}
	return err
}

// maxImportLine bounds a line, in bytes.
const maxImportLine = 64 << 10

func readLines(r io.Reader, skip int, add func(int, *dps.Enrollment, json.RawMessage) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 4096), maxImportLine)
	n := 0
	for s.Scan() {
		n++
		line := bytes.TrimSpace(s.Bytes())
		if n <= skip || len(line) == 0 {
			continue
		}
		var e dps.Enrollment
		if err := json.Unmarshal(line, &e); err != nil {
			return cradle.Errorf(cradle.Invalid, "line %d is not the JSON of an individual enrolment: %v", n, strictjson.Reason(err))
		}
		if e.RegistrationID == "" {
			return cradle.Errorf(cradle.Invalid, "line %d has no registrationId", n)
		}
		if err := add(n, &e, bytes.Clone(line)); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return cradle.Errorf(cradle.Invalid, "line %d: %v", n+1, err).WithHint("a line has at most %d bytes", maxImportLine)
	}
	return nil
}

// csvColumns are what a CSV file may have, in lower case.
var csvColumns = map[string]func(*dps.Enrollment, string){
	"registrationid":       func(e *dps.Enrollment, s string) { e.RegistrationID = s },
	"deviceid":             func(e *dps.Enrollment, s string) { e.DeviceID = s },
	"account":              func(e *dps.Enrollment, s string) { e.Account = s },
	"iothubhostname":       func(e *dps.Enrollment, s string) { e.IotHubHostName = s },
	"provisioningstatus":   func(e *dps.Enrollment, s string) { e.ProvisioningStatus = s },
	"primarykey":           func(e *dps.Enrollment, s string) { keyed(e).PrimaryKey = s },
	"secondarykey":         func(e *dps.Enrollment, s string) { keyed(e).SecondaryKey = s },
	"endorsementkey":       func(e *dps.Enrollment, s string) { hardware(e).EndorsementKey = s },
	"storagerootkey":       func(e *dps.Enrollment, s string) { hardware(e).StorageRootKey = s },
	"certificate":          func(e *dps.Enrollment, s string) { clients(e).Primary = &dps.X509Certificate{Certificate: s} },
	"secondarycertificate": func(e *dps.Enrollment, s string) { clients(e).Secondary = &dps.X509Certificate{Certificate: s} },
}

func keyed(e *dps.Enrollment) *dps.SymmetricKey {
	if e.Attestation.SymmetricKey == nil {
		e.Attestation.Type, e.Attestation.SymmetricKey = "symmetricKey", new(dps.SymmetricKey)
	}
	return e.Attestation.SymmetricKey
}

func hardware(e *dps.Enrollment) *dps.TPM {
	if e.Attestation.TPM == nil {
		e.Attestation.Type, e.Attestation.TPM = "tpm", new(dps.TPM)
	}
	return e.Attestation.TPM
}

func clients(e *dps.Enrollment) *dps.X509Certificates {
	if e.Attestation.X509 == nil {
		e.Attestation.Type, e.Attestation.X509 = "x509", &dps.X509Attestation{ClientCertificates: new(dps.X509Certificates)}
	}
	return e.Attestation.X509.ClientCertificates
}

func readCSV(r io.Reader, skip int, add func(int, *dps.Enrollment, json.RawMessage) error) error {
	in := csv.NewReader(bufio.NewReader(r))
	in.ReuseRecord = true
	head, err := in.Read()
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "CSV header: %v", err)
	}
	var set []func(*dps.Enrollment, string)
	names := slices.Clone(head)
	for i, name := range names {
		f := csvColumns[strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))]
		if f == nil {
			return cradle.Errorf(cradle.Invalid, "CSV column %d: %.60q is not known", i+1, name).WithHint("cradle enrollment import --help lists the columns")
		}
		set = append(set, f)
	}
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "CSV: %v", err)
		}
		line, _ := in.FieldPos(0)
		if line <= skip {
			continue
		}
		e := dps.Enrollment{Attestation: dps.Attestation{Type: "symmetricKey"}} // without any credential: keys are made
		for i, v := range row {
			if v = strings.TrimSpace(v); v != "" {
				set[i](&e, v)
			}
		}
		if e.RegistrationID == "" {
			return cradle.Errorf(cradle.Invalid, "CSV line %d has no registrationId", line)
		}
		kinds := 0
		for _, given := range []bool{e.Attestation.SymmetricKey != nil, e.Attestation.TPM != nil, e.Attestation.X509 != nil} {
			if given {
				kinds++
			}
		}
		if kinds > 1 {
			return cradle.Errorf(cradle.Invalid, "CSV line %d has keys, a TPM and a certificate at once: one of them", line)
		}
		if err := add(line, &e, nil); err != nil {
			return err
		}
	}
}

package ledger

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/cradle-iot/cradle"
)

// Code says what kind of thing is wrong.
type Code string

// What a verification can find. The subject of a finding names the thing.
const (
	FileMalformed Code = "file-malformed" // line N cannot be read; what follows was not looked at
	FileTruncated Code = "file-truncated"
	KeyMismatch   Code = "key-mismatch" // the export names another key than the auditor

	LeafGap           Code = "leaf-gap"             // an index is missing or comes twice
	LeafMalformed     Code = "leaf-malformed"       // changed, or of another log
	CheckpointChanged Code = "checkpoint-changed"   // signature, origin or size is wrong
	CheckpointMissing Code = "checkpoint-missing"   // a later one names it
	CheckpointRoot    Code = "checkpoint-root"      // a leaf below it was changed, removed, moved or put in
	LogRolledBack     Code = "log-rolled-back"      // shorter than a signed checkpoint says
	LogLost           Code = "log-lost"             // leaves that a kept checkpoint covers were declared lost after a restore
	LogUnsigned       Code = "log-unsigned"         // old leaves above the newest checkpoint
	HeadChanged       Code = "log-head-changed"     // size, root or newest checkpoint in the log's head
	HashChanged       Code = "hash-changed"         // a remembered node of the tree
	FeedChanged       Code = "feed-changed"         // status feed and log disagree
	QuarantineChanged Code = "quarantine-changed"   // store and log disagree
	SettingChanged    Code = "setting-changed"      // a user, another's CA, an operator, a witness, a distrust or an approval is not as the log has it
	WitnessMissing    Code = "witness-missing"      // no cosignature of a demanded witness, or an old one
	RowForeign        Code = "row-foreign"          // of another account
	RowDuplicate      Code = "row-duplicate"        // two rows, one name
	AuthorityChanged  Code = "authority-changed"    // not the certificate that its id says
	AuthorityUnknown  Code = "authority-unlogged"   // a CA of the account that no leaf names
	AuthorityMissing  Code = "authority-missing"    // a leaf names a CA of the account that has no row
	OEMChanged        Code = "oem-changed"          // keys are not those in the installation's log
	AnchorChanged     Code = "anchor-changed"       // a TPM maker's certificate, its maker or tier is not as imported
	AccountChanged    Code = "account-changed"      // order key is not the one in the log
	OrderChanged      Code = "order-changed"        // row and signatures or leaves disagree
	OrderUnlogged     Code = "order-without-leaf"   //
	OrderMissing      Code = "order-missing"        // a leaf names an order without a row
	OrderOverrun      Code = "order-overrun"        // more units than its quantity
	LotUnlogged       Code = "lot-without-leaf"     //
	LotChanged        Code = "lot-changed"          //
	DeviceOutside     Code = "device-outside-order" // no such order, or outside its serial range or naming
	DeviceChanged     Code = "device-changed"       // row and leaves disagree
	DeviceMissing     Code = "device-missing"       // a leaf or certificate names a device without a row
	UnitDuplicate     Code = "unit-duplicate"       // two devices with one serial or one TPM

	CertificateUnlogged  Code = "certificate-without-leaf"  // planted: issued past the log
	CertificateMissing   Code = "certificate-missing"       // logged, but its row is gone
	CertificateTwice     Code = "certificate-logged-twice"  //
	CertificateChanged   Code = "certificate-changed"       // row, certificate and leaf disagree
	CertificateForged    Code = "certificate-forged"        // not signed by an authority of this account for this use
	CertificateOutside   Code = "certificate-outside-order" // born while its order was not open
	CertificateBlocked   Code = "certificate-blocked"       // issued while the device was suspended, revoked or retired
	CommitmentWrong      Code = "commitment-wrong"          // made twice, or opened by something else, or more than once
	SerialDuplicate      Code = "serial-duplicate"          // two certificates, one serial
	RevocationMissing    Code = "revocation-missing"        // the log says revoked, the row does not
	RevocationUnlogged   Code = "revocation-without-leaf"   // the row says revoked, the log does not
	CertificateSeenAlone Code = "certificate-seen"          // a hub saw it, the log does not know it
)

// Finding is one thing that is wrong.
type Finding struct {
	Code    Code   `json:"code"`
	Subject string `json:"subject"` // for example "certificate 3f…", "leaf 17"
	Detail  string `json:"detail"`
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Code, f.Subject, f.Detail) }

// Summary says what was looked at.
type Summary struct {
	Log          string      `json:"log"`
	Origin       string      `json:"origin"`
	Created      time.Time   `json:"created"`
	KeyGiven     bool        `json:"key_given"` // by the auditor; otherwise the file's own was believed
	Leaves       int64       `json:"leaves"`
	Checkpoints  int64       `json:"checkpoints"`
	Signed       int64       `json:"signed"` // leaves below the newest good checkpoint
	Root         string      `json:"root"`
	Orders       int64       `json:"orders"`
	Devices      int64       `json:"devices"`
	Certificates int64       `json:"certificates"`
	Seen         int64       `json:"seen"`
	Witnessed    []Witnessed `json:"witnessed,omitempty"` // newest of each demanded witness
	Findings     int64       `json:"findings"`            // all, also those above MaxFindings
}

// Options are what an auditor brings along from outside of the store.
type Options struct {
	Key         string       // VerifierKey of the log; empty: the one in the file is believed
	Checkpoints [][]byte     // signed checkpoints that were kept elsewhere
	Contains    []Checkpoint // sizes and roots that are known otherwise; unsigned
	// Seen lists certificates that a hub admitted: lines of SHA-256 in hexadecimal; empty lines and
	// lines beginning with '#' do not count.
	Seen io.Reader
	// Witnesses are keys (WitnessKey), each of which must have cosigned a checkpoint not longer before the export than
	// WitnessAge (zero: DefaultWitnessAge).
	Witnesses  []string
	WitnessAge time.Duration
}

// DefaultWitnessAge is how old the newest cosignature of a witness may be.
const DefaultWitnessAge = 24 * time.Hour

// Witnessed is what a witness has vouched for.
type Witnessed struct {
	Cosignature
	Size int64 `json:"size"`
}

// Bounds of Verify.
const (
	MaxFindings = 1000
	maxLine     = 4 << 20
	// unsignedGrace is how old a leaf may be at export that is in no checkpoint; the signing loop
	// needs about a second.
	unsignedGrace = time.Minute
)

// Verify reads an export and checks it against itself, against the signatures in it and against
// opts. It holds certificates and devices in memory, about 500 bytes each, and no leaves. An error means that
// nothing could be verified; everything that is wrong with the export is a finding.
func Verify(r io.Reader, o Options) ([]Finding, Summary, error) {
	seen, err := readSeen(o.Seen)
	if err != nil {
		return nil, Summary{}, err
	}
	for _, w := range o.Witnesses {
		if _, err := parseWitness(w); err != nil {
			return nil, Summary{}, err
		}
	}
	if o.Key != "" {
		if _, err := note.NewVerifier(strings.TrimSpace(o.Key)); err != nil {
			return nil, Summary{}, cradle.Errorf(cradle.Invalid, "%.60q is not a log's verifier key", o.Key).
				WithHint("give NAME+HASH+KEY, or the file that holds it; cradle status --json shows it beside the checkpoint")
		}
	}
	v, whole := newVerification(o), true
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; v.stage != afterEnd; n++ {
		raw, err := readLine(in)
		if errors.Is(err, io.EOF) {
			if n == 1 {
				return nil, Summary{}, cradle.Errorf(cradle.Invalid, "the export is empty")
			}
			v.find(FileTruncated, "file", "it ends after line %d without its end line", n-1)
			whole = false
			break
		}
		var bad *cradle.Error
		if err != nil && !errors.As(err, &bad) {
			return nil, Summary{}, fmt.Errorf("reading the export: %w", err)
		}
		if err == nil {
			err = v.line(raw)
		}
		if err != nil && n == 1 {
			return nil, Summary{}, cradle.Errorf(cradle.Invalid, "not an export of a log: %v", err).
				WithHint("cradle audit export makes one")
		}
		if err != nil {
			v.find(FileMalformed, fmt.Sprintf("line %d", n), "%v", err)
			whole = false
			break
		}
	}
	if v.stage == afterEnd {
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			v.find(FileMalformed, "file", "there is more after its end line")
		}
	}
	v.finishTree()
	if whole { // else half of everything would seem to be missing
		v.finishHead()
		v.finishRecords(seen)
	}
	return v.findings, v.sum, nil
}

// readLine returns the next line without its end, io.EOF after the last.
func readLine(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		part, err := in.ReadSlice('\n')
		out = append(out, part...)
		switch {
		case len(out) > maxLine:
			return nil, cradle.Errorf(cradle.TooLarge, "a line of more than %d bytes", maxLine)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(out) > 0:
			return nil, cradle.Errorf(cradle.Invalid, "the line is cut off")
		case err != nil:
			return nil, err
		}
		return out[:len(out)-1], nil
	}
}

func readSeen(r io.Reader) ([]digest, error) {
	if r == nil {
		return nil, nil
	}
	var out []digest
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		s := strings.TrimSpace(sc.Text())
		if s == "" || s[0] == '#' {
			continue
		}
		d, ok := parseDigest(strings.ToLower(strings.ReplaceAll(s, ":", "")))
		if !ok {
			return nil, cradle.Errorf(cradle.Invalid, "the list of seen certificates, line %d: not a SHA-256 in hexadecimal", n)
		}
		out = append(out, d)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("reading the list of seen certificates: %w", err)
	}
	return out, nil
}

type digest [32]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// parseDigest accepts lower case only, the form of our records.
func parseDigest(s string) (d digest, ok bool) {
	n, err := hex.Decode(d[:], []byte(s[:min(len(s), 64)]))
	return d, err == nil && n == 32 && len(s) == 64 && d.String() == s
}

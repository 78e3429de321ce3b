package provider

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/ca"
)

// Restored says that a log belongs to a store that was restored from a backup and may be behind what is known
// outside. Until it has caught up, or what is lost was declared lost, the log is closed: nothing that it would have to record
// happens, so nothing is issued, revoked or ordered, and the status feed is silent, so that who follows it refuses
// new work (DESIGN §5).
type Restored struct {
	Log   string
	Size  int64  // of the log now
	Known []byte // newest checkpoint known outside; nil: nobody has said one
	At    time.Time
}

// closedRetry is when a client of a closed log may ask again: an operator is at work.
const closedRetry = 30 * time.Second

// loadRestored rereads which logs are closed.
func (p *Provider) loadRestored(ctx context.Context) error {
	rows, err := p.store.Restored(ctx)
	if err != nil {
		return err
	}
	closed := map[string]bool{}
	for _, r := range rows {
		closed[r.Log] = true
	}
	if old := p.closed.Swap(&closed); old != nil && len(*old) > 0 && len(closed) == 0 {
		p.log.Info("the restored store has caught up; it is open again")
	}
	return nil
}

// openLog refuses work on a closed log.
func (p *Provider) openLog(log string) error {
	if c := p.closed.Load(); c == nil || !(*c)[log] {
		return nil
	}
	e := cradle.Errorf(cradle.Busy, "the store was restored from a backup and log %s has not caught up with what is known outside", log).
		WithHint("the operator: cradle restore status")
	e.RetryAfter = closedRetry
	return e
}

// openAll refuses, while any log is closed, what could contradict what the store has lost: to tell a standing that may be
// older than what who asks knows already, or to give a name away a second time.
func (p *Provider) openAll() error {
	if c := p.closed.Load(); c != nil {
		for log := range *c {
			return p.openLog(log)
		}
	}
	return nil
}

// Closed returns the logs that wait to catch up after a restore.
func (p *Provider) Closed(ctx context.Context) ([]Restored, error) { return p.store.Restored(ctx) }

// unknown answers a client certificate that is not on record. One that an issuing key of ours signed is
// quarantined: it was issued after the backup that the store was restored from, or past the store by somebody with that key.
func (p *Provider) unknown(e Endpoint, peer *x509.Certificate) error {
	for _, a := range p.dir.Load().byID {
		if a.Kind == RootCA || a.Kind == OEMRootCA || !bytes.Equal(a.issuer.Cert.RawSubject, peer.RawIssuer) || peer.CheckSignatureFrom(a.issuer.Cert) != nil {
			continue
		}
		p.log.Error("a certificate signed by an issuing key of ours is not on record: it is in quarantine. Was the store restored from a backup?",
			"certificate", ca.Digest(peer.Raw), "serial", peer.SerialNumber.Text(16), "subject", peer.Subject.String(), "authority", a.ID, "account", a.Account)
		return cradle.Errorf(cradle.Forbidden, "the client certificate (%s, serial %s) was signed here but is not on record: it is in quarantine", peer.Subject, peer.SerialNumber.Text(16)).
			WithHint("%s", est.AttestAfresh)
	}
	refuse := cradle.Errorf(cradle.Unauthorized, "the client certificate (%s, serial %s) was not issued here", peer.Subject, peer.SerialNumber.Text(16)).
		WithHint("use a certificate of account %s", e.Account)
	refuse.Err = errNoRecord
	return refuse
}

// errNoRecord is the cause when nobody here knows a client certificate: it may be another CA's. One on record is not, whatever
// it is refused for.
var errNoRecord = errors.New("the certificate is not on record")

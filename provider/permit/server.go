package permit

import (
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
)

// maxBody bounds a permit: a CSR with evidence, a client's chain, an order.
const maxBody = 1 << 20

// Handler is the signer's side. It asks TLS for a client certificate and takes those of its front ends alone.
type Handler struct {
	Provider *provider.Provider
	Log      *slog.Logger
	// Front says which front end a certificate is of. It is asked for each request, so that one that was withdrawn
	// is out at once.
	Front func(digest string) (name string, ok bool)
	// PerSecond bounds the permits of one front end; 0 means no limit.
	PerSecond int

	mu     sync.Mutex
	fronts map[string]*window
}

// window counts what a front end brought in this second.
type window struct {
	second int64
	count  int
}

// door is the challenge of a 401 that is about the front end, not about the device that it speaks for.
const door = `Mutual realm="signer"`

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := h.serve(w, r)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		detail, hint := cradle.Public(err)
		kind := cradle.KindOf(err)
		if kind == cradle.Internal {
			h.Log.Error("permit", "err", err)
		}
		w.WriteHeader(admin.StatusOf(kind))
		_ = json.NewEncoder(w).Encode(admin.Problem{Kind: kind.String(), Detail: detail, Hint: hint})
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		w.Header().Set("WWW-Authenticate", door)
		return nil, cradle.Errorf(cradle.Unauthorized, "no TLS client certificate").WithHint("a front end shows the one of its credential: --signer-credential FILE")
	}
	front, ok := h.Front(Digest(r.TLS.PeerCertificates[0]))
	if !ok {
		h.Log.Warn("permit of a stranger", "certificate", Digest(r.TLS.PeerCertificates[0]), "from", r.RemoteAddr)
		w.Header().Set("WWW-Authenticate", door)
		return nil, cradle.Errorf(cradle.Unauthorized, "this client certificate is of no front end of this signer")
	}
	if r.Method != http.MethodPost {
		return nil, cradle.Errorf(cradle.NotFound, "permits are brought by POST")
	}
	if !h.allow(front, time.Now()) {
		h.Log.Warn("permits over the limit", "front", front, "per_second", h.PerSecond)
		return nil, cradle.Errorf(cradle.Busy, "front end %s brings more than %d permits a second", front, h.PerSecond)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	switch r.URL.Path {
	case Path, BirthPath:
		return h.sign(r, front)
	case AlivePath:
		return struct{}{}, nil
	case NoncePath:
		return h.nonce(r)
	case PreparePath:
		in, err := decode[prepareRequest](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, h.Provider.PrepareOrder(r.Context(), in.Order)
	case AcceptPath:
		in, err := decode[acceptRequest](r)
		if err != nil {
			return nil, err
		}
		return h.accept(r, in)
	}
	return nil, cradle.Errorf(cradle.NotFound, "the signer takes permits, and nothing else")
}

func (h *Handler) accept(r *http.Request, in acceptRequest) (*order.Accepted, error) {
	return h.Provider.AcceptOrder(r.Context(), in.Order, in.Request, in.ProviderURL)
}

func (h *Handler) nonce(r *http.Request) (any, error) {
	in, err := decode[nonceRequest](r)
	if err != nil {
		return nil, err
	}
	peer, err := x509.ParseCertificate(in.Peer)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the client's certificate: %v", err)
	}
	return h.Provider.Births().BirthNonce(r.Context(), provider.Endpoint{Account: in.Account, Profile: in.Profile, Label: in.Label}, peer, in.Claim)
}

// sign takes a permit, or a birth.
func (h *Handler) sign(r *http.Request, front string) (any, error) {
	in, err := decode[request](r)
	if err != nil {
		return nil, err
	}
	req := provider.Request{Endpoint: provider.Endpoint{Account: in.Account, Profile: in.Profile, Label: in.Label}, Operation: in.Operation, CSR: in.CSR,
		Client: provider.Client{Basic: in.Basic}}
	if len(in.Peer) > 0 {
		if req.Client.Peer, err = x509.ParseCertificate(in.Peer); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "the client's certificate: %v", err)
		}
	}
	for _, der := range in.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "the client's chain: %v", err)
		}
		req.Client.Chain = append(req.Client.Chain, c)
	}
	if r.URL.Path == BirthPath {
		if ep, err := h.Provider.Endpoint(r.Context(), in.Label); err != nil || ep != req.Endpoint {
			return nil, cradle.Errorf(cradle.Forbidden, "label %q is not of account %s and profile %s", in.Label, in.Account, in.Profile)
		}
		out, err := h.Provider.Births().Birth(r.Context(), req)
		if err != nil {
			h.Log.Warn("birth refused", "front", front, "account", in.Account, "profile", in.Profile, "err", err)
			return nil, err
		}
		cert, err := x509.ParseCertificate(out.DER)
		if err != nil {
			return nil, err
		}
		h.Log.Info("birth", "front", front, "account", in.Account, "profile", in.Profile, "serial", cert.SerialNumber.Text(16))
		return answer{out.DER, out.Replaced}, nil
	}
	pm := provider.Permit{Intent: &provider.Intent{ID: in.Intent}, Request: req, Made: in.Made}
	if q := in.TPM; q != nil {
		pm.TPM = &provider.TPMRequest{Endpoint: req.Endpoint, Client: req.Client, CSR: req.CSR, EKChain: q.EKChain, EKPublic: q.EKPublic, AKPublic: q.AKPublic}
	}
	out, err := h.Provider.Redeem(r.Context(), front, pm)
	if err != nil {
		return nil, err
	}
	return answer{out.DER, out.Replaced}, nil
}

func decode[T any](r *http.Request) (T, error) {
	var in T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return in, cradle.Errorf(cradle.Invalid, "request body: %v", strictjson.Reason(err))
	}
	return in, nil
}

func (h *Handler) allow(front string, now time.Time) bool {
	if h.PerSecond <= 0 {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fronts == nil {
		h.fronts = map[string]*window{}
	}
	f := h.fronts[front]
	if f == nil {
		f = new(window)
		h.fronts[front] = f
	}
	if s := now.Unix(); s != f.second {
		f.second, f.count = s, 0
	}
	f.count++
	return f.count <= h.PerSecond
}

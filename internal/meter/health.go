package meter

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// Health asks checks whether the process can do its work, not more often than once in its Life.
type Health struct {
	Checks []Check
	Life   time.Duration // of an answer; default one second

	mu    sync.Mutex
	asked time.Time
	found []Finding
}

// Check is one condition of readiness.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// Finding is how a check came out.
type Finding struct {
	Check  string `json:"check"`
	Ready  bool   `json:"ready"`
	Detail string `json:"detail,omitempty"`
}

// checkTime bounds all checks together.
const checkTime = 3 * time.Second

// Ready runs the checks, or returns what they found less than Life ago. Requests that come while they run wait
// for the same answer.
func (h *Health) Ready() (ready bool, found []Finding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	life := h.Life
	if life == 0 {
		life = time.Second
	}
	if h.found == nil || time.Since(h.asked) > life {
		ctx, cancel := context.WithTimeout(context.Background(), checkTime)
		defer cancel()
		h.found = []Finding{}
		for _, c := range h.Checks {
			f := Finding{Check: c.Name, Ready: true}
			if err := c.Run(ctx); err != nil {
				f.Ready, f.Detail = false, err.Error()
			}
			h.found = append(h.found, f)
		}
		h.asked = time.Now()
	}
	ready = true
	for _, f := range h.found {
		ready = ready && f.Ready
	}
	return ready, h.found
}

// Live answers 200 for as long as the process serves requests.
func Live(w http.ResponseWriter, r *http.Request) { say(w, r, true, "ok") }

// ReadyPlain answers 200 or 503, and a word: it is for load balancers, on a port that anybody reaches.
func (h *Health) ReadyPlain(w http.ResponseWriter, r *http.Request) {
	ready, _ := h.Ready()
	text := "ready"
	if !ready {
		text = "not ready"
	}
	say(w, r, ready, text)
}

// ReadyInFull is ReadyPlain with the findings, as JSON.
func (h *Health) ReadyInFull(w http.ResponseWriter, r *http.Request) {
	ready, found := h.Ready()
	b, err := json.MarshalIndent(struct {
		Ready  bool      `json:"ready"`
		Checks []Finding `json:"checks"`
	}{ready, found}, "", "  ")
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	say(w, r, ready, string(b))
}

func say(w http.ResponseWriter, r *http.Request, ready bool, text string) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write([]byte(text + "\n"))
}

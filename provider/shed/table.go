package shed

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds each table: some 300 bytes a key.
const maxKeys = 1 << 16

// table keeps a bucket per key, for maxKeys keys: the one not asked for longest makes place. A nil
// table has no limit.
type table struct {
	rate Rate

	mu      sync.Mutex
	buckets map[uint64]*list.Element // of *bucket
	recent  list.List                // most recent first
}

type bucket struct {
	key    uint64
	known  bool
	tokens *rate.Limiter
}

func newTable(r Rate) *table {
	if r.PerSecond <= 0 {
		return nil
	}
	return &table{rate: r, buckets: map[uint64]*list.Element{}}
}

// take takes one token of key's bucket; when there is none it returns how long until there is.
func (t *table) take(key uint64, now time.Time) time.Duration {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	tokens := t.bucket(key).tokens
	t.mu.Unlock()
	if tokens.AllowN(now, 1) {
		return 0
	}
	r := tokens.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	r.CancelAt(now)
	return max(wait, 1)
}

func (t *table) bucket(key uint64) *bucket {
	if e := t.buckets[key]; e != nil {
		t.recent.MoveToFront(e)
		return e.Value.(*bucket)
	}
	if len(t.buckets) >= maxKeys {
		last := t.recent.Back()
		delete(t.buckets, t.recent.Remove(last).(*bucket).key)
	}
	b := &bucket{key: key, tokens: rate.NewLimiter(rate.Limit(t.rate.PerSecond), t.rate.Burst)}
	t.buckets[key] = t.recent.PushFront(b)
	return b
}

// seen says whether key has a bucket, and whether know was called for it.
func (t *table) seen(key uint64) (seen, known bool) {
	if t == nil {
		return true, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.buckets[key]
	return e != nil, e != nil && e.Value.(*bucket).known
}

func (t *table) know(key uint64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.buckets[key]; e != nil {
		e.Value.(*bucket).known = true
	}
}

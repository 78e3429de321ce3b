package hub

import "sync"

// keyLocks is a mutex per key, for the keys in use.
type keyLocks struct {
	mu    sync.Mutex
	locks map[key]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int // holders and waiters; of keyLocks.mu
}

func (l *keyLocks) lock(k key) (unlock func()) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[key]*keyLock{}
	}
	one := l.locks[k]
	if one == nil {
		one = new(keyLock)
		l.locks[k] = one
	}
	one.users++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		if one.users--; one.users == 0 {
			delete(l.locks, k)
		}
		l.mu.Unlock()
	}
}

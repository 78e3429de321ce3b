package peerauth

// Remembered is the number of leaves in memory.
func (p *Pool[T]) Remembered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.leaves)
}

package dpsserver

// FillWaiting has as many register calls wait for their outcome as may.
func (h *Handler) FillWaiting() {
	for range cap(h.waiting) {
		h.waiting <- struct{}{}
	}
}

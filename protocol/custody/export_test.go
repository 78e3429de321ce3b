package custody

// Follow is Extend without signatures, which would make fuzzing slow and its coverage random.
func Follow(h Head, payload []byte) (Head, error) {
	var r Record
	if err := decode("custody record", payload, &r); err != nil {
		return Head{}, err
	}
	if err := r.Check(); err != nil {
		return Head{}, err
	}
	return h.follow(&r)
}

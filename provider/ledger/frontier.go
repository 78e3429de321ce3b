package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Frontier is the right edge of a log's tree: all that is needed to append and to compute the root. The
// zero value is the empty log.
type Frontier struct {
	size  int64
	nodes []Hash // roots of the complete subtrees, largest first: one per bit set in size
}

// Size is how many leaves the log has; the index of the next one.
func (f *Frontier) Size() int64 { return f.size }

// Append adds a leaf's hash.
func (f *Frontier) Append(leaf Hash) {
	h := leaf
	// Like a carry in binary addition: equal subtrees merge.
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.nodes) - 1
		h = tlog.NodeHash(f.nodes[last], h)
		f.nodes = f.nodes[:last]
	}
	f.nodes = append(f.nodes, h)
	f.size++
}

// Root is the tree's root hash; of the empty log SHA-256 of nothing (RFC 6962 §2.1).
func (f *Frontier) Root() Hash {
	if f.size == 0 {
		return sha256.Sum256(nil)
	}
	h := f.nodes[len(f.nodes)-1]
	for i := len(f.nodes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.nodes[i], h)
	}
	return h
}

// MarshalBinary encodes the frontier: the size in 8 bytes big endian, then the nodes; at most 2 KB.
func (f *Frontier) MarshalBinary() ([]byte, error) {
	b := make([]byte, 8, 8+len(f.nodes)*tlog.HashSize)
	binary.BigEndian.PutUint64(b, uint64(f.size))
	for _, h := range f.nodes {
		b = append(b, h[:]...)
	}
	return b, nil
}

// UnmarshalBinary is the inverse of MarshalBinary. No bytes at all are the empty log.
func (f *Frontier) UnmarshalBinary(b []byte) error {
	if len(b) == 0 {
		*f = Frontier{}
		return nil
	}
	if len(b) < 8 {
		return fmt.Errorf("frontier of %d bytes", len(b))
	}
	size := int64(binary.BigEndian.Uint64(b))
	if n := bits.OnesCount64(uint64(size)); size < 0 || len(b) != 8+n*tlog.HashSize {
		return fmt.Errorf("frontier of size %d has %d bytes", size, len(b))
	}
	f.size, f.nodes = size, nil
	for b = b[8:]; len(b) > 0; b = b[tlog.HashSize:] {
		f.nodes = append(f.nodes, Hash(b[:tlog.HashSize]))
	}
	return nil
}

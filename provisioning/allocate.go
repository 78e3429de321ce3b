package provisioning

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/cradle-iot/cradle"
)

// allocate names a device's hub. A device stays where it is as long as its group allows that hub, even
// when the hub takes no new ones. Hashed allocation ranks the hubs by a hash over device and hub
// (rendezvous hashing), so a hub that joins or leaves moves no device but its own.
func (s *Service) allocate(by Enrolled, id RegistrationID, present string) (string, error) {
	g := by.Terms()
	allowed := func(name string) bool { return len(g.Hubs) == 0 || slices.Contains(g.Hubs, name) }
	if present != "" && s.hubs[present] != nil && allowed(present) {
		return present, nil
	}
	var best string
	var rank uint64
	for _, h := range s.order {
		if h.Closed || !allowed(h.Name) {
			continue
		}
		if g.Allocation == Static {
			if best == "" || slices.Index(g.Hubs, h.Name) < slices.Index(g.Hubs, best) {
				best = h.Name
			}
			continue
		}
		sum := sha256.Sum256([]byte(h.Name + "\x00" + string(id)))
		if r := binary.BigEndian.Uint64(sum[:8]); best == "" || r > rank {
			best, rank = h.Name, r
		}
	}
	if best == "" {
		return "", cradle.Errorf(cradle.Busy, "no linked hub takes devices of %s", by.Name()).
			WithHint("the operator must link or open a hub")
	}
	return best, nil
}

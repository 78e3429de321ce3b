package hubdb

import (
	"context"

	"github.com/cradle-iot/cradle/internal/sqldb"
)

// channel is where the hubs' processes over one database talk.
const channel = "cradle_hub"

// Listen implements hub.Talk.
func (s *Store) Listen(ctx context.Context, heard func(word string), others func(any bool), lost func()) error {
	return s.db.Listen(ctx, channel, sqldb.Listener{Heard: heard, Others: others, Lost: lost})
}

// Tell implements hub.Talk.
func (s *Store) Tell(ctx context.Context, words ...string) error {
	return s.db.Say(ctx, channel, words...)
}

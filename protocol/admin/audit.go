package admin

import "time"

// TilesPrefix is where logs are served by C2SP tlog-tiles: TilesPrefix/LOG/checkpoint, TilesPrefix/LOG/tile/…
const TilesPrefix = "/tlog/v1"

// AddWitness names a witness by its key.
type AddWitness struct {
	Key string `json:"key"` // C2SP tlog-cosignature, NAME+HASH+KEY
}

// Witness is somebody whose cosignatures are taken on the log's checkpoints.
type Witness struct {
	Log   string    `json:"log"`
	Name  string    `json:"name"`
	Key   string    `json:"key"`
	Added time.Time `json:"added_at"`
}

// Cosigned carries a checkpoint with cosignatures.
type Cosigned struct {
	Checkpoint string `json:"checkpoint"` // C2SP signed note
}

// Cosignature is one that was new.
type Cosignature struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"`
}

// Cosignatures are those that were new.
type Cosignatures struct {
	Log   string        `json:"log"`
	Added []Cosignature `json:"added"`
}

// Publish says whether anybody may read a log's tiles.
type Publish struct {
	Public bool `json:"public"`
}

// Published says how a log is served.
type Published struct {
	Log    string `json:"log"`
	Public bool   `json:"public"`
	URL    string `json:"url"` // of its tiles
}

// ThawOrder says how many units were born under an order that a loss has frozen.
type ThawOrder struct {
	Used   int64  `json:"used"`
	Reason string `json:"reason,omitempty"`
}

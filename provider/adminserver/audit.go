package adminserver

import (
	"errors"
	"io"
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// maxCosigned bounds the body of a cosigned checkpoint.
const maxCosigned = 16 << 10

func (s *Server) auditRoutes() {
	handleStream(s, op{pattern: "GET /audit/{log}", does: "A log with its records, for cradle audit verify.", need: view, scope: found}, "application/x-ndjson", s.export)
	handle(s, op{pattern: "GET /audit/{log}/witnesses", does: "A log's witnesses.", need: view, scope: found}, func(c *call, _ none) ([]admin.Witness, error) {
		log, err := s.log(c)
		if err != nil {
			return nil, err
		}
		rows, err := s.Provider.Witnesses(c.ctx(), log)
		out := make([]admin.Witness, 0, len(rows))
		for _, w := range rows {
			out = append(out, admin.Witness(w))
		}
		return out, err
	})
	handle(s, op{pattern: "POST /audit/{log}/witnesses", does: "Take cosignatures of a witness.", need: own, scope: found}, func(c *call, in admin.AddWitness) (admin.Witness, error) {
		log, err := s.log(c)
		if err != nil {
			return admin.Witness{}, err
		}
		w, err := s.Provider.AddWitness(c.ctx(), log, in.Key)
		return admin.Witness(w), err
	})
	handle(s, op{pattern: "DELETE /audit/{log}/witnesses/{name...}", does: "Take no further cosignatures of a witness.", need: own, scope: found}, func(c *call, _ none) (none, error) {
		log, err := s.log(c)
		if err != nil {
			return none{}, err
		}
		return none{}, s.Provider.RemoveWitness(c.ctx(), log, c.path("name"))
	})
	handle(s, op{pattern: "POST /audit/{log}/cosignatures", does: "Hand in a checkpoint that a witness cosigned.", need: view, scope: found}, func(c *call, in admin.Cosigned) (admin.Cosignatures, error) {
		log, err := s.log(c)
		if err != nil {
			return admin.Cosignatures{}, err
		}
		return s.cosign(c, log, []byte(in.Checkpoint))
	})
	handle(s, op{pattern: "POST /audit/{log}/publish", does: "Say whether anybody may read a log's checkpoint and tiles, which hold all its leaves.", need: own, scope: found}, func(c *call, in admin.Publish) (admin.Published, error) {
		log, err := s.log(c)
		if err != nil {
			return admin.Published{}, err
		}
		err = s.Provider.Publish(c.ctx(), log, in.Public)
		return admin.Published{Log: log, Public: in.Public, URL: s.Public.URL + admin.TilesPrefix + "/" + log}, err
	})

	// C2SP tlog-tiles. Who may read is decided by readable, for a witness mostly needs no token.
	handleStream(s, op{pattern: "GET " + admin.TilesPrefix + "/{log}/checkpoint", does: "A log's newest checkpoint. A token is needed unless the log is published."}, "text/plain; charset=utf-8",
		func(w http.ResponseWriter, c *call) error {
			h, err := s.readable(c)
			if err != nil {
				return err
			}
			if h.Checkpoint == nil {
				return cradle.Errorf(cradle.NotFound, "log %s has no checkpoint yet", h.Log).WithHint("ask again in a second")
			}
			w.Header().Set("Cache-Control", "no-cache")
			_, err = w.Write(h.Checkpoint)
			return err
		})
	handleStream(s, op{pattern: "GET " + admin.TilesPrefix + "/{log}/tile/{path...}", does: "A tile or a bundle of entries of a log. A token is needed unless the log is published."}, "application/octet-stream",
		func(w http.ResponseWriter, c *call) error {
			h, err := s.readable(c)
			if err != nil {
				return err
			}
			ref, err := ledger.ParseTilePath("tile/" + c.path("path"))
			if err != nil {
				return err
			}
			b, err := s.Provider.Tile(c.ctx(), h.Log, ref)
			if err != nil {
				return err
			}
			cache := "max-age=60"
			if ref.Full() {
				cache = "max-age=31536000, immutable"
			}
			if !h.Public {
				cache = "private, " + cache
			}
			w.Header().Set("Cache-Control", cache)
			_, err = w.Write(b)
			return err
		})
	handle(s, op{pattern: "POST " + admin.TilesPrefix + "/{log}/checkpoint", does: "Hand in a checkpoint that a witness cosigned, as a signed note. A token is needed unless the log is published."},
		func(c *call, _ none) (admin.Cosignatures, error) {
			h, err := s.readable(c)
			if err != nil {
				return admin.Cosignatures{}, err
			}
			b, err := io.ReadAll(http.MaxBytesReader(nil, c.r.Body, maxCosigned))
			var big *http.MaxBytesError
			if errors.As(err, &big) {
				return admin.Cosignatures{}, cradle.Errorf(cradle.TooLarge, "the checkpoint is over %d bytes", big.Limit)
			}
			if err != nil {
				return admin.Cosignatures{}, cradle.Errorf(cradle.Invalid, "reading the checkpoint: %v", err)
			}
			return s.cosign(c, h.Log, b)
		})
}

// log is the log of the path, if the caller may know of it.
func (s *Server) log(c *call) (string, error) {
	log := c.path("log")
	if log == provider.InstallationLog {
		return log, authorize(c.caller, know, installation, "")
	}
	if err := c.may(cradle.AccountID(log)); err != nil {
		return "", err
	}
	_, _, err := s.Provider.Account(c.ctx(), cradle.AccountID(log))
	return log, err
}

// readable is the head of the path's log, if it is published or the caller's token may read it.
func (s *Server) readable(c *call) (provider.Head, error) {
	h, err := s.Provider.LogHead(c.ctx(), c.path("log"))
	if err == nil && h.Public {
		return h, nil
	}
	if err != nil && cradle.KindOf(err) != cradle.NotFound {
		return h, err
	}
	// The same refusal whether there is such a log or not.
	var terr error
	if c.caller, terr = s.caller(c.r); terr != nil {
		return h, terr
	}
	if terr := authorize(c.caller, view, everywhere, ""); terr != nil {
		return h, terr
	}
	if _, terr := s.log(c); terr != nil {
		return h, terr
	}
	return h, err
}

func (s *Server) cosign(c *call, log string, note []byte) (admin.Cosignatures, error) {
	out := admin.Cosignatures{Log: log, Added: []admin.Cosignature{}}
	added, err := s.Provider.Cosign(c.ctx(), log, note)
	for _, a := range added {
		out.Added = append(out.Added, admin.Cosignature(a))
	}
	return out, err
}

// export streams a log.
func (s *Server) export(w http.ResponseWriter, c *call) error {
	log, err := s.log(c)
	if err != nil {
		return err
	}
	out := &begun{Writer: w}
	err = s.Provider.Export(c.ctx(), log, ledger.NewWriter(out))
	if err != nil && out.yes { // an export that breaks off must not look whole
		s.Log.Error("audit export", "log", log, "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// begun is a writer that knows whether anything was written.
type begun struct {
	io.Writer
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.Writer.Write(p)
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
)

// mark tells the stores of a folder, or of a database, that they were restored. All of them are opened, so that one of a newer
// version is refused before the first is changed.
func mark(ctx context.Context, data, url string) error {
	at := func(name string) string { return cmp.Or(url, filepath.Join(data, name+".db")) }
	p, err := providerdb.Open(ctx, at("provider"))
	if err != nil {
		return fmt.Errorf("provider's store: %w", err)
	}
	defer p.Close()
	h, err := hubdb.Open(ctx, at("hub"), nil)
	if err != nil {
		return fmt.Errorf("hub's store: %w", err)
	}
	defer h.Close()
	d, err := provisioningdb.Open(ctx, at("provisioning"))
	if err != nil {
		return fmt.Errorf("provisioning's store: %w", err)
	}
	defer d.Close()
	return p.MarkRestored(ctx, time.Now())
}

// stopped is what a verb has that works on a store on which no serve runs.
type stopped struct {
	Data string `help:"Data folder of serve, which must not run." default:"cradle-data" type:"path"`
	DB   string `help:"PostgreSQL URL, as given to serve; no serve may run on it. Default: SQLite in the data folder." placeholder:"URL"`
}

// lock keeps serve from the data folder.
func (s *stopped) lock() (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(s.Data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "data folder: %v", err).WithHint("name it with --data")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(cradle.Errorf(cradle.Conflict, "cradle serve runs on %s", s.Data).WithHint("stop it first"), f.Close())
	}
	return f, nil
}

func (s *stopped) store(ctx context.Context) (*providerdb.DB, error) {
	file := filepath.Join(s.Data, "provider.db")
	if s.DB == "" {
		if _, err := os.Stat(file); err != nil {
			return nil, cradle.Errorf(cradle.NotFound, "%s holds no database", s.Data).WithHint("name the restored data folder with --data")
		}
	}
	return providerdb.Open(ctx, cmp.Or(s.DB, file))
}

// recover opens the store and what seals its secrets.
func (s *stopped) recover(ctx context.Context) (*provider.Recovery, *providerdb.DB, func() error, error) {
	lock, err := s.lock()
	if err != nil {
		return nil, nil, nil, err
	}
	vault, err := filekey.LoadVault(filepath.Join(s.Data, keyFile))
	if err != nil {
		lock.Close()
		return nil, nil, nil, cradle.Errorf(cradle.NotFound, "%v", err).WithHint("copy the %s of the installation into %s", keyFile, s.Data)
	}
	db, err := s.store(ctx)
	if err != nil {
		lock.Close()
		return nil, nil, nil, err
	}
	r, err := provider.OpenRecovery(ctx, db, vault, time.Now)
	if err != nil {
		return nil, nil, nil, errors.Join(err, db.Close(), lock.Close())
	}
	return r, db, func() error { return errors.Join(db.Close(), lock.Close()) }, nil
}

// RestoreMarkCmd is for stores that were restored by other means.
type RestoreMarkCmd struct{ stopped }

// Run implements the verb.
func (c *RestoreMarkCmd) Run(ctx context.Context, out *cli.Out) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if c.DB == "" {
		if _, err := os.Stat(filepath.Join(c.Data, "provider.db")); err != nil {
			return cradle.Errorf(cradle.NotFound, "%s holds no database", c.Data).WithHint("name the restored data folder with --data, or the database with --db")
		}
	}
	if err := mark(ctx, c.Data, c.DB); err != nil {
		return err
	}
	return out.Print(map[string]bool{"marked": true}, func(w io.Writer) {
		fmt.Fprintln(w, "marked as restored; nothing is issued until it has caught up: cradle restore catch-up, or cradle restore declare-lost")
	})
}

// RestoreStatusCmd shows which logs wait.
type RestoreStatusCmd struct{ stopped }

// closedLog is a row of restore status.
type closedLog struct {
	Log   string    `json:"log"`
	Size  int64     `json:"size"`
	Known int64     `json:"known"` // size of the newest checkpoint known outside; 0: nobody has said one
	At    time.Time `json:"at"`
}

// Run implements the verb. It may run beside serve.
func (c *RestoreStatusCmd) Run(ctx context.Context, out *cli.Out) error {
	db, err := c.store(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Restored(ctx)
	if err != nil {
		return err
	}
	logs := []closedLog{}
	for _, r := range rows {
		l := closedLog{Log: r.Log, Size: r.Size, At: r.At}
		if lines := strings.Split(string(r.Known), "\n"); len(lines) > 2 {
			l.Known, _ = strconv.ParseInt(lines[1], 10, 64)
		}
		logs = append(logs, l)
	}
	return out.Print(map[string]any{"open": len(logs) == 0, "closed": logs}, func(w io.Writer) {
		if len(logs) == 0 {
			fmt.Fprintln(w, "no log is closed")
			return
		}
		cells := make([][]string, len(logs))
		for i, l := range logs {
			cells[i] = []string{l.Log, strconv.FormatInt(l.Size, 10), strconv.FormatInt(l.Known, 10), when(l.At)}
		}
		cli.Table(w, []string{"closed log", "leaves", "known outside", "restored"}, cells)
	})
}

// RestoreCatchUpCmd brings a restored store up to date.
type RestoreCatchUpCmd struct {
	stopped
	Export     []string `help:"Newer audit export, by cradle audit export." type:"existingfile" placeholder:"FILE"`
	Checkpoint []string `help:"Newest checkpoint of a log that somebody kept: the log stays closed until it is reached. One that the store has already opens its log." type:"existingfile" placeholder:"FILE"`
}

// Run implements the verb.
func (c *RestoreCatchUpCmd) Run(ctx context.Context, out *cli.Out) (err error) {
	if len(c.Export)+len(c.Checkpoint) == 0 {
		return cli.Usagef("give what is known outside: --export or --checkpoint")
	}
	r, _, done, err := c.recover(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	say := func(u provider.CaughtUp) error {
		return out.Print(u, func(w io.Writer) {
			fmt.Fprintf(w, "log %s: %d leaves taken over, %d now; %d devices and %d certificates that were not known, %d standings changed\n",
				u.Log, u.Leaves, u.Size, u.Devices, u.Certificates, u.Blocked)
			for _, t := range u.Todo {
				fmt.Fprintf(w, "  do again: %s %s\n", when(t.At), cli.Line(t.What))
			}
			if u.Open {
				fmt.Fprintf(w, "log %s is open\n", u.Log)
			} else {
				fmt.Fprintf(w, "log %s stays closed: what is known outside is newer\n", u.Log)
			}
		})
	}
	for _, file := range c.Checkpoint {
		b, err := newestIn(file)
		if err != nil {
			return err
		}
		origin, err := ledger.OriginOf(b)
		if err != nil {
			return err
		}
		u, err := r.Known(ctx, origin[strings.LastIndexByte(origin, '/')+1:], b)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := say(u); err != nil {
			return err
		}
	}
	for _, file := range c.Export {
		u, findings, err := r.CatchUp(ctx, func() (io.ReadCloser, error) { return os.Open(file) })
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if len(findings) > 0 {
			for _, f := range findings[:min(len(findings), 20)] {
				out.Warnf("%s", f)
			}
			return cradle.Errorf(cradle.Conflict, "%d findings in %s: nothing of it was taken over", len(findings), file).
				WithHint("look at them with cradle audit verify; get another export")
		}
		if err := say(u); err != nil {
			return err
		}
	}
	return nil
}

// RestoreDeclareLostCmd gives up what nobody has any more.
type RestoreDeclareLostCmd struct {
	stopped
	Account []string `help:"Logs that are declared; default: all that are closed."`
	Reason  string   `help:"Why the newer leaves are lost; the log keeps it." required:""`
	Feed    int64    `help:"Newest number of the status feed that a follower knows. Default: 1000 above the backup's." placeholder:"N"`
}

// Run implements the verb.
func (c *RestoreDeclareLostCmd) Run(ctx context.Context, out *cli.Out) (err error) {
	r, db, done, err := c.recover(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	logs := c.Account
	if len(logs) == 0 {
		rows, err := db.Restored(ctx)
		if err != nil {
			return err
		}
		for _, x := range rows {
			logs = append(logs, x.Log)
		}
	}
	if len(logs) == 0 {
		return cradle.Errorf(cradle.Conflict, "no log is closed: there is nothing to declare")
	}
	for _, log := range logs {
		ended, err := r.DeclareLost(ctx, log, c.Reason, c.Feed)
		if err != nil {
			return err
		}
		if err := out.Print(map[string]any{"log": log, "open": true, "out_of_use": ended}, func(w io.Writer) {
			fmt.Fprintf(w, "log %s is open; what it lacks is lost\n", log)
			for _, id := range ended.Orders {
				fmt.Fprintf(w, "  order %s is frozen: say how many units the OEM has made with cradle order thaw %s --used N\n", id, id)
			}
			for _, ended := range []struct {
				what  string
				names []string
			}{{"operators", ended.Operators}, {"Basic users", ended.BasicUsers}, {"client CAs", ended.ClientCAs}} {
				if len(ended.names) > 0 {
					fmt.Fprintf(w, "  %s ended, since they may have been ended after the backup: %s\n", ended.what, strings.Join(ended.names, ", "))
				}
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// OrderThawCmd opens an order that a loss has frozen.
type OrderThawCmd struct {
	Operator
	ID     string `arg:"" help:"Order."`
	Used   int64  `help:"How many units the OEM has made under it." required:"" placeholder:"N"`
	Reason string `help:"Who said so; the log keeps it."`
}

// Run implements the verb.
func (c *OrderThawCmd) Run(ctx context.Context, out *cli.Out) error {
	return call(ctx, &c.Operator, out, http.MethodPost, "/orders/"+url.PathEscape(c.ID)+"/thaw", admin.ThawOrder{Used: c.Used, Reason: c.Reason},
		func(w io.Writer, o *admin.Order) {
			fmt.Fprintf(w, "order %s is %s: %d of %d units used\n", o.ID, o.State, o.Used, o.Quantity)
		})
}

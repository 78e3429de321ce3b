package hubdb

import (
	"context"
	"io/fs"
	"strings"
	"testing/fstest"

	"github.com/cradle-iot/cradle/internal/sqldb"
)

// SealBatch is how many rows a transaction of SealKeys seals.
const SealBatch = sealBatch

// OpenOld makes the tables at a URL as the last version had them that did not seal keys.
func OpenOld(ctx context.Context, url string) (*Store, error) {
	old := fstest.MapFS{}
	err := fs.WalkDir(migrations, "migrations", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() > "00006" {
			return err
		}
		b, err := fs.ReadFile(migrations, p)
		old[strings.TrimPrefix(p, "migrations/")] = &fstest.MapFile{Data: b}
		return err
	})
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, sqldb.Config{URL: url, Schema: schema, Migrations: old, ReadCommitted: true})
	return &Store{db: db}, err
}

// Update is a transaction on the store's tables.
func (s *Store) Update(ctx context.Context, fn func(tx *sqldb.Tx) error) error {
	return s.db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error { return fn(tx) })
}

package hub

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// bulkWorkers is how many entries of one bulk request are written at once; they then share commits.
const bulkWorkers = 16

// Bulk writes up to iothub.MaxBulk entries, each by itself as PutDevice, PutModule and their kin do: one that is
// refused does not hold up the others. An error means that nothing was done. Entries of one device are
// written in the order given.
func (h *Hub) Bulk(ctx context.Context, hub Name, in []iothub.BulkDevice) (*iothub.BulkResult, error) {
	if len(in) == 0 || len(in) > iothub.MaxBulk {
		return nil, cradle.Errorf(cradle.Invalid, "a bulk request has 1 to %d entries, not %d", iothub.MaxBulk, len(in))
	}
	byDevice := map[cradle.DeviceID][]int{}
	for i := range in {
		byDevice[in[i].ID] = append(byDevice[in[i].ID], i)
	}
	errs := make([]error, len(in))
	var g errgroup.Group
	g.SetLimit(bulkWorkers)
	for _, indexes := range byDevice {
		g.Go(func() error {
			for _, i := range indexes {
				errs[i] = h.bulkOne(ctx, hub, &in[i])
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	out := &iothub.BulkResult{Errors: []iothub.BulkError{}, Warnings: []iothub.BulkError{}}
	for i, err := range errs {
		if err == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		detail, hint := cradle.Public(err)
		if hint != "" {
			detail += ": " + hint
		}
		if cradle.KindOf(err) == cradle.Internal {
			h.log.Error("bulk request", "hub", hub, "device", in[i].ID, "err", err)
		}
		out.Errors = append(out.Errors, iothub.BulkError{DeviceID: in[i].ID, ModuleID: in[i].ModuleID, ErrorCode: bulkCode(err, in[i].ModuleID != ""), ErrorStatus: detail})
	}
	out.IsSuccessful = len(out.Errors) == 0
	return out, nil
}

func bulkCode(err error, module bool) string {
	switch k := cradle.KindOf(err); {
	case k == cradle.Invalid:
		return iothub.CodeArgumentInvalid
	case k == cradle.NotFound && NoModule(err):
		return iothub.CodeModuleNotFound
	case k == cradle.NotFound:
		return iothub.CodeDeviceNotFound
	case k == cradle.Conflict && Moved(err):
		return iothub.CodePreconditionFailed
	case k == cradle.Conflict && module:
		return iothub.CodeModuleAlreadyExists
	case k == cradle.Conflict:
		return iothub.CodeDeviceAlreadyExists
	case k == cradle.TooLarge:
		return iothub.CodeTooLarge
	case k == cradle.Busy:
		return iothub.CodeServerBusy
	}
	return iothub.CodeServerError
}

// bulkOne writes one entry.
func (h *Hub) bulkOne(ctx context.Context, hub Name, b *iothub.BulkDevice) error {
	mode, err := iothub.ParseImportMode(b.ImportMode)
	if err != nil {
		return err
	}
	match := iothub.AnyETag
	if slices.Contains([]string{iothub.ImportUpdateIfMatch, iothub.ImportDeleteIfMatch, iothub.ImportCreateOrUpdateMatch}, mode) {
		if match = iothub.UnquoteETag(b.ETag); match == "" && mode != iothub.ImportCreateOrUpdateMatch {
			return cradle.Errorf(cradle.Invalid, "importMode %s needs an eTag", mode)
		}
	}
	twin := &iothub.TwinPatch{Tags: b.Tags}
	twin.Properties.Desired = b.Properties.Desired
	hasTwin := len(twin.Tags) > 0 || len(twin.Properties.Desired) > 0
	put := func(ifMatch string) error {
		var err error
		if b.ModuleID != "" {
			_, err = h.PutModule(ctx, hub, b.Module(), ifMatch)
		} else {
			_, err = h.PutDevice(ctx, hub, b.Device(), ifMatch)
		}
		if err == nil && hasTwin { // if we stop here the entry is there without its twin, and the caller hears of it
			_, err = h.PatchTwin(ctx, hub, b.ID, b.ModuleID, twin, "", true)
		}
		return err
	}
	switch mode {
	case iothub.ImportCreate:
		return put("")
	case iothub.ImportUpdate, iothub.ImportUpdateIfMatch:
		return put(match)
	case iothub.ImportDelete, iothub.ImportDeleteIfMatch:
		if b.ModuleID != "" {
			return h.DeleteModule(ctx, hub, b.ID, b.ModuleID, match)
		}
		return h.DeleteDevice(ctx, hub, b.ID, match)
	case iothub.ImportCreateOrUpdate, iothub.ImportCreateOrUpdateMatch:
		for range casRetries {
			if err = put(""); cradle.KindOf(err) != cradle.Conflict || match == "" {
				return err
			}
			if err = put(match); cradle.KindOf(err) != cradle.NotFound {
				return err
			}
		}
		return err
	}
	// ImportUpdateTwin and its kin.
	match = iothub.AnyETag
	if mode == iothub.ImportUpdateTwinIfMatch {
		if match = iothub.UnquoteETag(b.TwinETag); match == "" {
			return cradle.Errorf(cradle.Invalid, "importMode %s needs a twinETag", mode)
		}
	}
	_, err = h.PatchTwin(ctx, hub, b.ID, b.ModuleID, twin, match, false)
	return err
}

package iothub

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cradle-iot/cradle"
)

// Twin reads a device's twin; NotFound when there is no such device.
func (r *Registry) Twin(ctx context.Context, id cradle.DeviceID) (*Twin, error) {
	t := new(Twin)
	if _, err := r.do(ctx, http.MethodGet, twinPath(id), nil, "", nil, t); err != nil {
		return nil, fmt.Errorf("reading twin of hub device %s: %w", id, err)
	}
	return t, nil
}

// PatchTwin merges tags and desired properties into a device's twin and returns what is stored; ifMatch is an ETag of
// the twin or AnyETag, and Conflict says that it has moved.
func (r *Registry) PatchTwin(ctx context.Context, id cradle.DeviceID, p *TwinPatch, ifMatch string) (*Twin, error) {
	return r.writeTwin(ctx, http.MethodPatch, id, p, ifMatch)
}

// ReplaceTwin is PatchTwin for the whole of tags and desired properties: what p does not name is gone afterwards.
func (r *Registry) ReplaceTwin(ctx context.Context, id cradle.DeviceID, p *TwinPatch, ifMatch string) (*Twin, error) {
	return r.writeTwin(ctx, http.MethodPut, id, p, ifMatch)
}

func (r *Registry) writeTwin(ctx context.Context, method string, id cradle.DeviceID, p *TwinPatch, ifMatch string) (*Twin, error) {
	t := new(Twin)
	if _, err := r.do(ctx, method, twinPath(id), nil, ifMatch, p, t); err != nil {
		return nil, fmt.Errorf("writing twin of hub device %s: %w", id, err)
	}
	return t, nil
}

func twinPath(id cradle.DeviceID) string { return "/twins/" + url.PathEscape(string(id)) }

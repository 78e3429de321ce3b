package hubdb_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TestModules runs random operations on devices and their modules against a map.
func TestModules(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1")
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		model := map[cradle.DeviceID]map[iothub.ModuleID]hub.Module{}
		devices, ids := []cradle.DeviceID{"a", "b"}, []iothub.ModuleID{"$edgeAgent", "A", "a", "é"}
		for i := range 300 {
			device, id := devices[r.IntN(2)], ids[r.IntN(len(ids))]
			m := hub.Module{Device: device, ID: id, Generation: "g", ETag: fmt.Sprint(i), ManagedBy: "x", Primary: "aa", Created: now, Updated: now.Add(time.Second)}
			if m.Auth.Type = iothub.SelfSigned; r.IntN(2) == 0 {
				m.Auth = hub.Auth{Type: iothub.SAS, Primary: []byte{0, 1}, Secondary: []byte{byte(i)}}
			}
			have, there := model[device][id]
			etag := have.ETag
			if r.IntN(4) == 0 {
				etag = "stale"
			}
			var err error
			want := cradle.Kind(-1)
			switch op := r.IntN(10); {
			case op == 0 && model[device] == nil:
				err = s.InsertDevice(ctx, "hub-1", &hub.Device{ID: device, ETag: "e"}, []hub.Module{m})
				model[device] = map[iothub.ModuleID]hub.Module{id: m}
			case op == 0:
				err = s.DeleteDevice(ctx, "hub-1", device, "e")
				delete(model, device)
			case op < 4:
				err = s.InsertModule(ctx, "hub-1", &m)
				switch {
				case model[device] == nil:
					want = cradle.NotFound
				case there:
					want = cradle.Conflict
				default:
					model[device][id] = m
				}
			case !there:
				want = cradle.NotFound
				err = s.UpdateModule(ctx, "hub-1", &m, etag)
			case etag != have.ETag:
				want = cradle.Conflict
				err = s.DeleteModule(ctx, "hub-1", device, id, etag)
			case op < 8:
				err = s.UpdateModule(ctx, "hub-1", &m, etag)
				model[device][id] = m
			default:
				err = s.DeleteModule(ctx, "hub-1", device, id, etag)
				delete(model[device], id)
			}
			if want < 0 && err != nil || want >= 0 && cradle.KindOf(err) != want {
				t.Fatalf("seed %d step %d: got %v, want kind %v", seed, i, err, want)
			}
			got, err := s.Modules(ctx, "hub-1", device)
			if err != nil {
				t.Fatal(err)
			}
			var list []hub.Module
			for _, m := range model[device] {
				list = append(list, m)
			}
			slices.SortFunc(list, func(a, b hub.Module) int { return strings.Compare(string(a.ID), string(b.ID)) })
			if !reflect.DeepEqual(got, list) {
				t.Fatalf("seed %d step %d: got %+v, want %+v", seed, i, got, list)
			}
			one, err := s.Module(ctx, "hub-1", device, id)
			if m, there := model[device][id]; there && (err != nil || !reflect.DeepEqual(*one, m)) {
				t.Fatalf("seed %d step %d: got %+v %v, want %+v", seed, i, one, err, m)
			} else if !there {
				wantKind(t, "absent module", err, cradle.NotFound)
			}
		}
	})
}

func TestMaxModules(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := withHubs(t, url, "hub-1")
		if err := s.InsertDevice(t.Context(), "hub-1", &hub.Device{ID: "d"}, nil); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		refused := make(chan error, hub.MaxModules+10)
		for i := range hub.MaxModules + 10 {
			wg.Go(func() {
				if err := s.InsertModule(t.Context(), "hub-1", &hub.Module{Device: "d", ID: iothub.ModuleID(fmt.Sprint(i))}); err != nil {
					refused <- err
				}
			})
		}
		wg.Wait()
		if len(refused) != 10 {
			t.Errorf("%d were refused", len(refused))
		}
		wantKind(t, "one too many", <-refused, cradle.TooLarge)
	})
}

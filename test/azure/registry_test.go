package azure_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cradle-iot/cradle/protocol/iothub"
)

// bulk is the outcome of an operation on several entries.
type bulk struct {
	IsSuccessful bool
	Errors       []struct {
		DeviceID, ErrorCode string
		ErrorStatus         string
	}
}

func (s suite) TestRegistry(t *testing.T) {
	var r struct {
		Made, Disabled iothub.Device
		Exists, Gone   refusal
		Listed         []string
		Statistics     struct{ TotalDeviceCount, EnabledDeviceCount, DisabledDeviceCount int }
	}
	s.must(t, &r, "hub.device", with{"connection": s.hub, "id": "registry-1"})
	if r.Made.DeviceID != "registry-1" || r.Made.GenerationID == "" || r.Made.ETag == "" || r.Made.Status != "enabled" || r.Made.Authentication.Type != "sas" {
		t.Errorf("made: %+v", r.Made)
	}
	if r.Disabled.Status != "disabled" || r.Disabled.StatusReason != "test" || r.Disabled.ETag == r.Made.ETag || r.Disabled.GenerationID != r.Made.GenerationID {
		t.Errorf("disabled: %+v", r.Disabled)
	}
	if !r.Exists.is("DeviceAlreadyExistsError", 409, "exists") || !r.Gone.is("DeviceNotFoundError", 404, "registry-1") {
		t.Errorf("refusals: %+v, %+v", r.Exists, r.Gone)
	}
	if st := r.Statistics; !slices.Contains(r.Listed, "registry-1") || st.TotalDeviceCount < 1 || st.DisabledDeviceCount < 1 || st.TotalDeviceCount != st.EnabledDeviceCount+st.DisabledDeviceCount {
		t.Errorf("list %v, statistics %+v", r.Listed, st)
	}
}

func (s suite) TestRegistryBulk(t *testing.T) {
	var r struct {
		Added, Updated, Removed bulk
		Found                   iothub.Device
		Gone                    refusal
	}
	s.must(t, &r, "hub.bulk", with{"connection": s.hub, "ids": []string{"bulk-1", "bulk-2", "bulk-3"}})
	if !r.Added.IsSuccessful || !r.Updated.IsSuccessful || !r.Removed.IsSuccessful || r.Found.Status != "disabled" || r.Gone.Name != "DeviceNotFoundError" {
		t.Errorf("%+v", r)
	}
}

func (s suite) TestModules(t *testing.T) {
	var r struct {
		Made, Read iothub.Module
		Listed     []string
		Twin       struct{ DeviceID, ModuleID string }
		Left       int
	}
	s.must(t, &r, "hub.modules", with{"connection": s.hub, "id": "modules-1"})
	if r.Made.ModuleID != "camera" || r.Made.DeviceID != "modules-1" || r.Read.ManagedBy != "tester" || r.Read.GenerationID != r.Made.GenerationID {
		t.Errorf("made %+v, read %+v", r.Made, r.Read)
	}
	if !slices.Equal(r.Listed, []string{"camera"}) || r.Left != 0 || r.Twin.DeviceID != "modules-1" || r.Twin.ModuleID != "camera" {
		t.Errorf("listed %v, then %d; twin %+v", r.Listed, r.Left, r.Twin)
	}
}

// What a back end may not do it is told, with the reason.
func (s suite) TestServiceKeysRefused(t *testing.T) {
	wrong := with{"connection": fmt.Sprintf("HostName=%s;SharedAccessKeyName=iothubowner;SharedAccessKey=%s", s.host, "d3Jvbmcga2V5"), "id": "nobody"}
	if e := s.refused(t, "hub.getDevice", wrong); e.Name != "UnauthorizedError" || e.Status != 401 || !e.says("signature") {
		t.Errorf("hub: %v", e)
	}
	wrong = with{"connection": fmt.Sprintf("HostName=%s;SharedAccessKeyName=provisioningserviceowner;SharedAccessKey=%s", s.host, "d3Jvbmcga2V5"), "group": "devices"}
	if e := s.refused(t, "enrolments.get", wrong); e.Name != "UnauthorizedError" || e.Status != 401 || !e.says("signature") {
		t.Errorf("provisioning: %v", e)
	}
}

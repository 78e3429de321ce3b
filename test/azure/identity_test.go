package azure_test

import "testing"

// A module connects beside its device, with a key and a twin of its own.
func (s suite) TestModuleClient(t *testing.T) {
	for _, transport := range []string{"mqtt", "ws"} {
		id := "module-" + transport
		s.must(t, nil, "hub.create", with{"connection": s.hub, "device": with{"deviceId": id}})
		var key string
		s.must(t, &key, "hub.addModule", with{"connection": s.hub, "id": id, "module": "camera"})
		s.must(t, nil, "device.module", with{"hub": s.host, "id": id, "module": "camera", "symmetricKey": key, "transport": transport})
		var seen twin
		s.must(t, &seen, "hub.getModuleTwin", with{"connection": s.hub, "id": id, "module": "camera"})
		if seen.Properties.Reported["lens"] != "clean" {
			t.Errorf("over %s: %+v", transport, seen)
		}
		if got := s.events(t, id); len(got) != 1 || got[0].System["$.cmid"] != "camera" {
			t.Errorf("over %s the hub has %+v", transport, got)
		}
	}
}

// Without DPS: the hub trusts a CA, and the registry says that it vouches for the device.
func (s suite) TestCertificateAuthority(t *testing.T) {
	root := newCA(t, "Hub's own root")
	factory := root.below(t, "Hub's own factory")
	s.MustCradle("hub", "ca", "add", "factory", s.Write("hub-ca.pem", root.pem))
	s.must(t, nil, "hub.create", with{"connection": s.hub, "device": with{"deviceId": "vouched-1", "authentication": with{"type": "certificateAuthority"}}})
	for _, transport := range []string{"mqtt", "ws"} {
		s.must(t, nil, "device.connect", s.device("vouched-1", transport, factory.leaf(t, "vouched-1", nil)))
	}
	for name, c := range map[string]pair{"another name": factory.leaf(t, "vouched-2", nil), "another CA": newCA(t, "Nobody's").leaf(t, "vouched-1", nil)} {
		if e := s.refused(t, "device.connect", s.device("vouched-1", "mqtt", c)); e.Name != "UnauthorizedError" {
			t.Errorf("%s: %v", name, e)
		}
	}
}

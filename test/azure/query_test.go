package azure_test

import (
	"fmt"
	"testing"
)

// Queries come in pages; what the language does not have is refused by name.
func (s suite) TestQuery(t *testing.T) {
	for i := range 3 {
		id := fmt.Sprintf("query-%d", i)
		s.must(t, nil, "hub.create", with{"connection": s.hub, "device": with{"deviceId": id}})
		s.must(t, nil, "hub.patchTwin", with{"connection": s.hub, "id": id, "patch": with{"tags": with{"site": "query", "floor": i}}})
	}
	var pages [][]twin
	s.must(t, &pages, "hub.query", with{"connection": s.hub, "query": "SELECT * FROM devices WHERE tags.site = 'query' AND tags.floor > 0", "pageSize": 1})
	var ids []string
	for _, page := range pages {
		if len(page) > 1 {
			t.Errorf("a page of %d", len(page))
		}
		for _, d := range page {
			ids = append(ids, d.DeviceID)
		}
	}
	if fmt.Sprint(ids) != "[query-1 query-2]" {
		t.Errorf("found %v in %d pages", ids, len(pages))
	}
	var counted [][]struct{ N int }
	s.must(t, &counted, "hub.query", with{"connection": s.hub, "query": "SELECT COUNT() AS n FROM devices WHERE tags.site = 'query'"})
	if len(counted) != 1 || len(counted[0]) != 1 || counted[0][0].N != 3 {
		t.Errorf("counted %+v", counted)
	}
	for query, reason := range map[string]string{
		"SELECT * FROM devices.jobs":                  "devices.jobs",
		"SELECT * FROM devices WHERE tags.site = ":    "query",
		"DELETE FROM devices WHERE tags.site = 'all'": "DELETE",
	} {
		if e := s.refused(t, "hub.query", with{"connection": s.hub, "query": query}); e.Name != "ArgumentError" || e.Status != 400 || !e.says(reason) {
			t.Errorf("%s: %v", query, e)
		}
	}
}

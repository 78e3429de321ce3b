package main

import (
	"context"
	"net/http"

	"github.com/cradle-iot/cradle/hub/hubserver"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
)

// deviceRoutes are the ways to provisioning and hubs, with their service APIs: under a name of their own, and
// both of them under any other name.
type deviceRoutes struct{ provisioning, hub, both front.Route }

func (in *installation) deviceRoutes() deviceRoutes {
	prov := dpsserver.New(dpsserver.Config{Service: in.dps, Log: in.log, Admit: in.gate.Registration})
	hubs := hubserver.New(hubserver.Config{Hub: in.hubs, Default: firstHub, Log: in.log})
	accept := mqttserve.New(mqttserve.Config{Log: in.log})
	route := func(web http.Handler, device mqttserve.Handler) front.Route {
		return front.Route{HTTP: front.Paths{{Pattern: mqttserve.WebSocketPath, Handler: accept.WebSocket(device)}, {Pattern: "/", Handler: web}}, MQTT: accept.For(device)}
	}
	return deviceRoutes{
		provisioning: route(prov, prov),
		hub:          route(hubs, hubs),
		both: route(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if dpsserver.Owns(r.URL.Path) {
				prov.ServeHTTP(w, r)
				return
			}
			hubs.ServeHTTP(w, r)
		}), mqttserve.HandlerFunc(func(ctx context.Context, c *mqttserve.Conn, p *mqtt.Connect) {
			if p.Username != nil && dps.IsUserName(*p.Username) {
				prov.ServeMQTT(ctx, c, p)
				return
			}
			hubs.ServeMQTT(ctx, c, p)
		})),
	}
}

// Package hubserver speaks for the hubs: MQTT 3.1.1 to devices, as Azure IoT Hub does, over TLS
// connections that somebody else accepted (ServeMQTT, behind mqttserve), and REST to services (ServeHTTP): the device
// registry with Azure's paths, messages and errors, and the event stream.
//
// It decides nothing about who may do what; that is package hub. It bounds what a peer may make
// it hold: packet sizes before and after authentication, and the time to send them.
//
// Divergences from Azure IoT Hub: devices authenticate by certificate only; of the subscriptions, cloud
// to device messages and methods are granted, and none ever come; twins are refused.
package hubserver

import (
	"cmp"
	"log/slog"
	"net/http"

	"github.com/cradle-iot/cradle/hub"
)

// Config of a Server.
type Config struct {
	Hub     *hub.Hub
	Default hub.Name     // the hub meant by a host name that names none; "" means hub.DefaultName
	Log     *slog.Logger // nil means slog.Default()
}

// Server serves all hubs of an installation.
type Server struct {
	hub *hub.Hub
	def hub.Name
	log *slog.Logger
	mux *http.ServeMux
}

// New makes a server; nothing is started.
func New(c Config) *Server {
	s := &Server{hub: c.Hub, def: cmp.Or(c.Default, hub.DefaultName), log: cmp.Or(c.Log, slog.Default())}
	s.mux = s.routes()
	return s
}

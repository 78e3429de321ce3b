// Package hubserver speaks for the hubs. To devices and their modules: MQTT 3.1.1 as Azure IoT Hub does (telemetry,
// twins, methods, messages), over connections that mqttserve accepted (ServeMQTT), and HTTPS for telemetry and
// messages. To services: REST (ServeHTTP) with Azure's paths, messages and errors, and the event stream.
//
// It decides nothing about who may do what; that is package hub. It bounds what a peer may make it hold: packet sizes,
// the time to send them, and what waits to be written to a device that does not read.
//
// One goroutine serves a connection. What others have for the device (method calls, desired properties, messages) they
// leave in a bounded queue that a goroutine writes while it is not empty; see outgoing.
//
// Divergences from Azure IoT Hub: services send messages to devices, and read the feedback about them, by REST, since AMQP
// is not spoken; HTTP headers of application properties come in lower case.
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

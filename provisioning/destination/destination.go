// Package destination speaks to the hubs that an operator has linked: Azure IoT Hub and other Cradle hubs by the
// registry's REST API, and MQTT brokers with mutual TLS that have Mosquitto's dynamic security.
//
// What a link says decides where credentials are sent, so nothing is guessed: the TLS certificate must chain to the
// link's own anchors where it has some, and no redirect is followed.
//
// A broker is told less than a hub. "Assigned" means there: the broker trusts the account's operational CA, takes the
// certificate's common name for the user name, and dynamic security knows that user, with a role that lets it use
// devices/<id>/# and nothing else. A broker does not compare thumbprints, so of two certificates with one name it
// takes both; and a device that is blocked is cut off and may do nothing any more, but its certificate still gets
// through the TLS handshake, unless the broker has the CA's CRL too.
package destination

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
)

// Open makes what a link is spoken to by; it calls nobody. Errors are Invalid.
func Open(l provisioning.Link) (provisioning.Destination, error) {
	bad := func(format string, args ...any) (provisioning.Destination, error) {
		return provisioning.Destination{}, cradle.Errorf(cradle.Invalid, "hub %q: "+format, append([]any{l.Name}, args...)...)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if l.Anchors != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(l.Anchors)) {
			return bad("its anchors hold no PEM certificate")
		}
	}
	switch l.Kind {
	case provisioning.LinkAzure, provisioning.LinkCradle:
		cs, err := sas.ParseConnectionString(string(l.Secret))
		if err != nil {
			return provisioning.Destination{}, err
		}
		if cs.KeyName == "" {
			return bad("its connection string is a device's, not a policy's")
		}
		r := iothub.NewRegistry(client(conf), cs)
		return provisioning.Destination{Registry: r, Twins: r}, nil
	case provisioning.LinkMQTT:
		user, password, ok := strings.Cut(string(l.Secret), ":")
		if !ok || user == "" || password == "" {
			return bad("its secret is not user:password of the broker's administrator")
		}
		host, _, err := net.SplitHostPort(l.Control)
		if err != nil || host == "" {
			return bad("control address %.100q is not host:port", l.Control)
		}
		conf.ServerName = host
		return provisioning.Destination{Registry: &broker{addr: l.Control, tls: conf, user: user, password: password}}, nil
	}
	return bad("kind %.40q is not one of %s, %s, %s", l.Kind, provisioning.LinkCradle, provisioning.LinkAzure, provisioning.LinkMQTT)
}

// client follows no redirect: it would carry the SAS token elsewhere.
func client(conf *tls.Config) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var _ provisioning.HubRegistry = (*broker)(nil)

func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 10*time.Second)
}

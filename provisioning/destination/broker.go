package destination

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// The topics of Mosquitto's dynamic security plugin, and what bounds an answer.
const (
	control    = "$CONTROL/dynamic-security/v1"
	controlled = control + "/response"
	maxAnswer  = 64 << 10
)

// broker is an MQTT broker's dynamic security as a device registry: a device is a user with a role of its own. The
// device's thumbprints stand in the user's description, for whoever looks; the broker does not compare them.
type broker struct {
	addr     string
	tls      *tls.Config
	user     string
	password string
}

// command and response as the plugin has them.
type command struct {
	Command     string `json:"command"`
	Correlation string `json:"correlationData,omitempty"`
	Username    string `json:"username,omitempty"`
	Rolename    string `json:"rolename,omitempty"`
	TextName    string `json:"textname,omitempty"`
	Description string `json:"textdescription,omitempty"`
	Roles       []role `json:"roles,omitzero"`
	ACLs        []acl  `json:"acls,omitempty"`
}

type role struct {
	Rolename string `json:"rolename"`
}

type acl struct {
	Type  string `json:"acltype"`
	Topic string `json:"topic"`
	Allow bool   `json:"allow"`
}

type response struct {
	Command     string `json:"command"`
	Correlation string `json:"correlationData"`
	Error       string `json:"error"`
	Data        struct {
		Client *user `json:"client"`
	} `json:"data"`
}

type user struct {
	Username    string `json:"username"`
	Description string `json:"textdescription"`
	Disabled    bool   `json:"disabled"`
	Roles       []role `json:"roles"`
}

// description is the text that stands beside a user.
type description struct {
	Primary   string `json:"primary,omitempty"` // thumbprints
	Secondary string `json:"secondary,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// checkDevice refuses what would be a wildcard or another level in a topic.
func checkDevice(id cradle.DeviceID) error {
	if err := iothub.CheckDeviceID(id); err != nil {
		return err
	}
	if strings.ContainsAny(string(id), "+#/$%") {
		return cradle.Errorf(cradle.Invalid, "device id %q cannot be a user of an MQTT broker: it has one of + # / $ %%", id)
	}
	return nil
}

func roleOf(id cradle.DeviceID) string { return "cradle-" + string(id) }

// rights are what a device may do: use its own topics, as at an IoT hub.
func rights(id cradle.DeviceID) []acl {
	var out []acl
	for _, kind := range []string{"publishClientSend", "publishClientReceive", "subscribePattern", "unsubscribePattern"} {
		out = append(out, acl{kind, "devices/" + string(id) + "/#", true})
	}
	return out
}

// GetDevice implements provisioning.HubRegistry.
func (b *broker) GetDevice(ctx context.Context, id cradle.DeviceID) (*iothub.Device, error) {
	if err := checkDevice(id); err != nil {
		return nil, err
	}
	rs, err := b.do(ctx, command{Command: "getClient", Username: string(id)})
	if err != nil {
		return nil, err
	}
	if rs[0].Data.Client == nil {
		return nil, cradle.Errorf(cradle.Busy, "broker's answer names no client")
	}
	return device(id, rs[0].Data.Client), nil
}

func device(id cradle.DeviceID, u *user) *iothub.Device {
	d := &iothub.Device{DeviceID: id, Status: iothub.Enabled, Authentication: iothub.Authentication{Type: iothub.SelfSigned}}
	var text description
	_ = json.Unmarshal([]byte(u.Description), &text) // not ours: no thumbprints are known
	d.Authentication.X509Thumbprint, d.StatusReason = iothub.X509Thumbprint{PrimaryThumbprint: text.Primary, SecondaryThumbprint: text.Secondary}, text.Reason
	if u.Disabled || len(u.Roles) == 0 {
		d.Status = iothub.Disabled
	}
	sum := sha256.Sum256([]byte(d.Status + u.Description))
	d.ETag = hex.EncodeToString(sum[:8])
	return d
}

// WriteDevice implements provisioning.HubRegistry. The broker has no conditional writes: ETags are compared just before.
func (b *broker) WriteDevice(ctx context.Context, d *iothub.Device, ifMatch string) error {
	id := d.DeviceID
	if err := checkDevice(id); err != nil {
		return err
	}
	if d.Authentication.Type != iothub.SelfSigned {
		return cradle.Errorf(cradle.Invalid, "device %q has no certificate, and this broker admits by certificates alone", id).
			WithHint("give its enrolment another hub")
	}
	prints := d.Authentication.X509Thumbprint
	text, err := json.Marshal(description{prints.PrimaryThumbprint, prints.SecondaryThumbprint, d.StatusReason})
	if err != nil {
		return err
	}
	u := user{Username: string(id), Description: string(text), Disabled: d.Status == iothub.Disabled, Roles: []role{}}
	if !u.Disabled {
		u.Roles = []role{{roleOf(id)}}
	}
	if ifMatch != "" {
		cur, err := b.GetDevice(ctx, id)
		if err != nil {
			return err
		}
		if ifMatch != iothub.AnyETag && ifMatch != cur.ETag {
			return cradle.Errorf(cradle.Conflict, "broker's user %q has changed", id)
		}
	}
	// The role first: a user without it may do nothing, which is the safe half.
	if _, err := b.do(ctx, command{Command: "createRole", Rolename: roleOf(id), ACLs: rights(id)}); err != nil && cradle.KindOf(err) != cradle.Conflict {
		return err
	}
	cs := []command{{Command: "createClient", Username: u.Username, TextName: "cradle", Description: u.Description, Roles: u.Roles}}
	if ifMatch != "" {
		cs[0].Command = "modifyClient"
	}
	switch {
	case u.Disabled:
		cs = append(cs, command{Command: "disableClient", Username: u.Username}) // which also ends its connections
	case ifMatch != "": // never after createClient: were the user there already, and disabled, it would be let in
		cs = append(cs, command{Command: "enableClient", Username: u.Username})
	}
	_, err = b.do(ctx, cs...)
	return err
}

// DeleteDevice implements provisioning.HubRegistry.
func (b *broker) DeleteDevice(ctx context.Context, id cradle.DeviceID, _ string) error {
	if err := checkDevice(id); err != nil {
		return err
	}
	_, err := b.do(ctx, command{Command: "deleteClient", Username: string(id)}, command{Command: "deleteRole", Rolename: roleOf(id)})
	return err
}

// do has the broker carry commands out and returns its answers in their order; the first error ends it. Errors: NotFound,
// Conflict (exists already), Busy (out of reach, login refused, or an answer that is none), Invalid (refused).
func (b *broker) do(ctx context.Context, cs ...command) ([]response, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	busy := func(doing string, err error) error {
		return cradle.Errorf(cradle.Busy, "broker %s: %s: %v", b.addr, doing, err).WithHint("it is tried again later; does the broker run, with its dynamic security and this administrator?")
	}
	var nonce [12]byte
	rand.Read(nonce[:])
	for i := range cs {
		cs[i].Correlation = hex.EncodeToString(nonce[:]) + string(rune('a'+i))
	}
	body, err := json.Marshal(map[string]any{"commands": cs})
	if err != nil {
		return nil, err
	}
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{}, Config: b.tls}).DialContext(ctx, "tcp", b.addr)
	if err != nil {
		return nil, busy("connecting", err)
	}
	answers := make(chan response, 16*len(cs))
	m, err := mqtt.Dial(ctx, conn, mqtt.Options{ClientID: "cradle-" + hex.EncodeToString(nonce[:6]), Username: b.user, Password: []byte(b.password), Clean: true, MaxPacket: maxAnswer,
		OnMessage: func(topic string, payload []byte) error {
			var a struct {
				Responses []response `json:"responses"`
			}
			if topic != controlled || json.Unmarshal(payload, &a) != nil {
				return nil // not for us
			}
			for _, r := range a.Responses {
				select {
				case answers <- r:
				default: // others talk a lot
				}
			}
			return nil
		}})
	if err != nil {
		return nil, busy("logging in", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	defer func() {
		m.Close()
		<-ended
	}()
	if err := m.Subscribe(ctx, controlled, 1); err != nil {
		return nil, busy("subscribing to answers", err)
	}
	if err := m.Publish(ctx, control, 1, body); err != nil {
		return nil, busy("sending commands", err)
	}
	out := make([]response, len(cs))
	for got := 0; got < len(cs); {
		select {
		case <-ctx.Done():
			return nil, busy("waiting for an answer", ctx.Err())
		case err := <-ended:
			ended <- err
			return nil, busy("waiting for an answer", errors.Join(err, mqtt.ErrClosed))
		case r := <-answers:
			for i := range cs {
				if r.Correlation == cs[i].Correlation && out[i].Command == "" {
					out[i] = r
					got++
				}
			}
		}
	}
	for i, r := range out {
		if r.Error != "" {
			return nil, refused(cs[i], r.Error)
		}
	}
	return out, nil
}

// refused maps the plugin's words, which are all it has.
func refused(c command, text string) error {
	kind := cradle.Invalid
	switch lower := strings.ToLower(text); {
	case strings.Contains(lower, "not found"):
		kind = cradle.NotFound
	case strings.Contains(lower, "already exists"):
		kind = cradle.Conflict
	case strings.Contains(lower, "internal error"):
		kind = cradle.Busy
	}
	return cradle.Errorf(kind, "broker refuses %s of %q: %.200s", c.Command, c.Username+c.Rolename, text)
}

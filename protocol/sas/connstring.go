package sas

import (
	"encoding/base64"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// ConnectionString is an Azure-style connection string: which service, and with which key.
type ConnectionString struct {
	HostName string // host or host:port; also the resource that its tokens are for
	KeyName  string // policy, for example "provisioningserviceowner"; empty in a device's string
	DeviceID string // only in a device's string
	Key      []byte // decoded shared access key
}

// ParseConnectionString reads "HostName=…;SharedAccessKeyName=…;SharedAccessKey=…" (fields in any
// order, names in any case, others ignored). Errors never repeat the key.
func ParseConnectionString(s string) (*ConnectionString, error) {
	bad := func(format string, args ...any) (*ConnectionString, error) {
		return nil, cradle.Errorf(cradle.Invalid, "connection string: "+format, args...).
			WithHint("it reads HostName=<host>;SharedAccessKeyName=<policy>;SharedAccessKey=<base64>")
	}
	c := new(ConnectionString)
	for f := range strings.SplitSeq(strings.TrimSpace(s), ";") {
		if f == "" {
			continue
		}
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			return bad("a field has no '='")
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "hostname":
			c.HostName = value
		case "sharedaccesskeyname":
			c.KeyName = value
		case "deviceid":
			c.DeviceID = value
		case "sharedaccesskey":
			k, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return bad("SharedAccessKey is not base64")
			}
			c.Key = k
		}
	}
	if u, err := url.Parse("https://" + c.HostName); c.HostName == "" || err != nil || u.Host != c.HostName {
		return bad("HostName %q is not a host or host:port", c.HostName)
	}
	if len(c.Key) == 0 {
		return bad("SharedAccessKey is missing")
	}
	if c.KeyName == "" && c.DeviceID == "" {
		return bad("SharedAccessKeyName is missing")
	}
	return c, nil
}

// String writes it back, key included: it is a secret.
func (c *ConnectionString) String() string {
	s := "HostName=" + c.HostName
	if c.KeyName != "" {
		s += ";SharedAccessKeyName=" + c.KeyName
	}
	if c.DeviceID != "" {
		s += ";DeviceId=" + c.DeviceID
	}
	return s + ";SharedAccessKey=" + base64.StdEncoding.EncodeToString(c.Key)
}

// BaseURL is "https://" and the host.
func (c *ConnectionString) BaseURL() string { return "https://" + c.HostName }

// Token makes a service token that lives for ttl.
func (c *ConnectionString) Token(now time.Time, ttl time.Duration) string {
	return Sign(c.HostName, c.KeyName, c.Key, now.Add(ttl))
}

#!/bin/sh
# GlobalSign's estclient v1.0.6: enrol with a password, renew and rekey with the certificate, and have a key made.
. "$(dirname "$0")/lib.sh"
to="-server $EST -aps $LABEL -explicit $ANCHORS"

run estclient cacerts $to -out cacerts.pem
run estclient csrattrs $to

openssl ecparam -name prime256v1 -genkey -noout -out device.key
run estclient enroll $to -user "$EST_USER" -pass "$EST_PASSWORD" -key device.key -cn "$DEVICE" -out device.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem device.pem

# Renewal: the same key, the subject of the certificate (RFC 7030 §4.2.2).
run estclient reenroll $to -certs device.pem -key device.key -out renewed.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem renewed.pem
[ "$(openssl x509 -in device.pem -noout -pubkey)" = "$(openssl x509 -in renewed.pem -noout -pubkey)" ]
[ "$(openssl x509 -in device.pem -noout -subject)" = "$(openssl x509 -in renewed.pem -noout -subject)" ]
[ "$(openssl x509 -in device.pem -noout -serial)" != "$(openssl x509 -in renewed.pem -noout -serial)" ]

# Rekey: the CSR is signed by a new key, TLS still by the old one.
openssl ecparam -name secp384r1 -genkey -noout -out new.key
openssl req -new -key new.key -subj "$(openssl x509 -in renewed.pem -noout -subject -nameopt compat | sed 's/^subject=//')" -out new.csr
run estclient reenroll $to -certs renewed.pem -key device.key -csr new.csr -out rekeyed.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem rekeyed.pem
[ "$(openssl pkey -in new.key -pubout)" = "$(openssl x509 -in rekeyed.pem -noout -pubkey)" ]

# The server makes the key (RFC 7030 §4.4); it travels inside TLS.
run estclient serverkeygen $to -user "$EST_USER" -pass "$EST_PASSWORD" -cn "$DEVICE-skg" -keyout made.key -out made.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem made.pem
[ "$(openssl pkey -in made.key -pubout)" = "$(openssl x509 -in made.pem -noout -pubkey)" ]

refused Unauthorized estclient enroll $to -user "$EST_USER" -pass wrong -key device.key -cn "$DEVICE"
refused Unauthorized estclient enroll $to -key device.key -cn "$DEVICE"
openssl req -new -key new.key -subj "/CN=somebody-else" -out foreign.csr
refused 'not that of the certificate' estclient reenroll $to -certs rekeyed.pem -key new.key -csr foreign.csr

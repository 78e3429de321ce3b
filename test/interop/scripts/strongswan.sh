#!/bin/sh
# strongSwan's pki (Debian 12: 5.9.8, which knows no labels, so the server's default account answers).
. "$(dirname "$0")/lib.sh"

run pki --estca --url "https://$EST" --cacert "$ANCHORS" --caout ca.pem --outform pem --force
issuers=
for file in ca*.pem; do issuers="$issuers --cacert $file"; done
cat ca*.pem >chain.pem

run_to device.key pki --gen --type ecdsa --size 256 --outform pem
run_to device.csr pki --req --in device.key --type ecdsa --dn "CN=$DEVICE" --outform pem
run_to device.pem pki --est --url "https://$EST" --cacert "$ANCHORS" $issuers --userpass "$EST_USER:$EST_PASSWORD" --in device.csr --outform pem
run openssl verify -CAfile "$ROOT" -untrusted chain.pem device.pem

# With the certificate pki calls simplereenroll; a new key rolls over.
subject=$(openssl x509 -in device.pem -noout -subject -nameopt oneline,-space_eq | sed 's/^subject=//')
run_to new.key pki --gen --type ecdsa --size 384 --outform pem
run_to new.csr pki --req --in new.key --type ecdsa --dn "$subject" --outform pem
run_to renewed.pem pki --est --url "https://$EST" --cacert "$ANCHORS" $issuers --cert device.pem --key device.key --in new.csr --outform pem
run openssl verify -CAfile "$ROOT" -untrusted chain.pem renewed.pem
[ "$(openssl pkey -in new.key -pubout)" = "$(openssl x509 -in renewed.pem -noout -pubkey)" ]

refused 401 pki --est --url "https://$EST" --cacert "$ANCHORS" $issuers --userpass "$EST_USER:wrong" --in device.csr

#!/bin/sh
# A device of which nothing is known but a name and a password: openssl makes its key, curl enrols it and registers it
# with the provisioning service, mosquitto_pub sends telemetry to its hub and mosquitto_sub receives what it is told. The
# file back-end-authorization has a shared access signature of the hub's owner, as curl wants a header: "Authorization: ...".
. "$(dirname "$0")/../../interop/scripts/lib.sh"
to="--silent --show-error --fail-with-body --cacert $ANCHORS"
printf 'machine %s login %s password %s\n' "$HOST" "$EST_USER" "$EST_PASSWORD" >netrc
chmod 600 netrc
field() { sed 's/.*"'"$1"'":"\([^"]*\)".*/\1/' "$2"; } # field NAME FILE: a string of a JSON object

openssl ecparam -name prime256v1 -genkey -noout -out device.key
openssl req -new -key device.key -subj "/CN=$DEVICE" -outform DER | openssl base64 -A >device.csr.b64
run curl $to --netrc-file netrc -H 'Content-Type: application/pkcs10' --data-binary @device.csr.b64 "https://$HOST/.well-known/est/$LABEL/simpleenroll" -o device.b64
tr -d '\r\n' <device.b64 | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs >device.pem

at="https://$HOST/$ID_SCOPE/registrations/$DEVICE"
run curl $to --cert device.pem --key device.key -X PUT -H 'Content-Type: application/json' -d "{\"registrationId\":\"$DEVICE\"}" "$at/register?api-version=2021-06-01" -o register.json
while [ "$(field status register.json)" = assigning ]; do
	try curl $to --cert device.pem --key device.key "$at/operations/$(field operationId register.json)?api-version=2021-06-01" -o register.json
done
hub=$(field assignedHub register.json)
echo "the hub is $hub"

mqtt="-h $hub -p 8883 --cafile $ANCHORS --cert device.pem --key device.key -i $DEVICE -u $hub/$DEVICE/?api-version=2021-04-12 -q 1"
run mosquitto_pub $mqtt -t "devices/$DEVICE/messages/events/\$.ct=application%2Fjson&\$.ce=utf-8&seq=1" -m '{"temperature":21}'

# The back end tells the device something, which waits for it.
printf 'Authorization: %s\n' "$HUB_TOKEN" >back-end-authorization
run curl $to -H @back-end-authorization -H 'iothub-messageid: order-1' -d 'open the valve' "https://$hub/devices/$DEVICE/messages/devicebound?api-version=2021-04-12"
run mosquitto_sub $mqtt -t "devices/$DEVICE/messages/devicebound/#" -C 1 -W 30

# Topics of another device, and a certificate of another's, are refused.
refused 'CONN\|lost\|refused\|closed' mosquitto_pub $mqtt -t "devices/other/messages/events/" -m 'not mine'
refused 'not authorised' mosquitto_pub -h "$hub" -p 8883 --cafile "$ANCHORS" -i "$DEVICE" -u "$hub/$DEVICE/?api-version=2021-04-12" -t "devices/$DEVICE/messages/events/" -m 'no certificate'

#!/bin/sh
# curl and openssl alone: every step of RFC 7030 by hand.
. "$(dirname "$0")/lib.sh"
url="https://$EST/.well-known/est/$LABEL"
printf 'machine %s login %s password %s\n' "${EST%:*}" "$EST_USER" "$EST_PASSWORD" >netrc
chmod 600 netrc
to="--silent --show-error --fail-with-body --cacert $ANCHORS"
decode() { tr -d '\r\n' | openssl base64 -d -A; }
certs() { decode | openssl pkcs7 -inform DER -print_certs; } # a certs-only PKCS #7

run curl $to "$url/cacerts" -o cacerts.b64
certs <cacerts.b64 >cacerts.pem
run curl $to "$url/csrattrs" -o csrattrs.b64
decode <csrattrs.b64 >csrattrs.der
run openssl asn1parse -inform DER -in csrattrs.der

openssl ecparam -name prime256v1 -genkey -noout -out device.key
openssl req -new -key device.key -subj "/CN=$DEVICE" -outform DER | openssl base64 -A >device.csr.b64
run curl $to --netrc-file netrc -H 'Content-Type: application/pkcs10' --data-binary @device.csr.b64 "$url/simpleenroll" -o device.b64
certs <device.b64 >device.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem device.pem

# Bodies as other clients send them: PEM armour, and line breaks with carriage returns.
for body in armoured crlf; do
	openssl ecparam -name prime256v1 -genkey -noout -out key
	openssl req -new -key key -subj "/CN=$DEVICE-$body" -out csr.pem
	case $body in
	armoured) cp csr.pem csr.txt ;;
	crlf) grep -v -- ----- csr.pem | sed 's/$/\r/' >csr.txt ;;
	esac
	run curl $to --netrc-file netrc -H 'Content-Type: Application/PKCS10; charset=utf-8' --data-binary @csr.txt "$url/simpleenroll" -o answer.b64
	certs <answer.b64 >answer.pem
	run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem answer.pem
done

# An RSA-2048 key, the default of Azure IoT Identity Service.
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key 2>/dev/null
openssl req -new -key rsa.key -subj "/CN=$DEVICE-rsa" -outform DER | openssl base64 -A >rsa.csr.b64
run curl $to --netrc-file netrc -H 'Content-Type: application/pkcs10' --data-binary @rsa.csr.b64 "$url/simpleenroll" -o rsa.b64
certs <rsa.b64 >rsa.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem rsa.pem

# Renewal over mutual TLS.
subject=$(openssl x509 -in device.pem -noout -subject -nameopt compat | sed 's/^subject=//')
openssl req -new -key device.key -subj "$subject" -outform DER | openssl base64 -A >renew.csr.b64
run curl $to --cert device.pem --key device.key -H 'Content-Type: application/pkcs10' --data-binary @renew.csr.b64 "$url/simplereenroll" -o renewed.b64
certs <renewed.b64 >renewed.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem renewed.pem

# The server makes the key: two parts, the key and its certificate (RFC 7030 §4.4.2).
run curl $to --netrc-file netrc -H 'Content-Type: application/pkcs10' --data-binary @device.csr.b64 "$url/serverkeygen" -o parts -D head
part() { # part TYPE: the base64 body of the part whose content type begins so
	tr -d '\r' <parts | awk -v want="Content-Type: $1" 'index($0, want) == 1 { on = 1 } /^--/ { on = 0; body = 0 } on && body { print } on && $0 == "" { body = 1 }'
}
part application/pkcs8 | decode >made.der
part application/pkcs7-mime | certs >made.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem made.pem
[ "$(openssl pkey -inform DER -in made.der -pubout)" = "$(openssl x509 -in made.pem -noout -pubkey)" ]

# Refusals say what was wrong and what to do.
refused 401 curl $to -H 'Content-Type: application/pkcs10' --data-binary @device.csr.b64 "$url/simpleenroll"
refused 'pkcs10' curl $to --netrc-file netrc -H 'Content-Type: text/plain' --data-binary @device.csr.b64 "$url/simpleenroll"
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out weak.key 2>/dev/null
openssl req -new -key weak.key -subj "/CN=$DEVICE" -outform DER | openssl base64 -A >weak.csr.b64
refused 1024 curl $to --netrc-file netrc -H 'Content-Type: application/pkcs10' --data-binary @weak.csr.b64 "$url/simpleenroll"
refused 'no such' curl $to "https://$EST/.well-known/est/no-such-label/cacerts"

#!/bin/sh
# Bouncy Castle's EST client (Debian's libbcpkix-java), driven by EstClient.java beside this script.
. "$(dirname "$0")/lib.sh"
jars=/usr/share/java/bcpkix.jar:/usr/share/java/bcprov.jar:/usr/share/java/bcutil.jar
run java -cp "$jars" "$(dirname "$0")/EstClient.java" "$EST" "$LABEL" "$ANCHORS" "$DEVICE" "$EST_USER" "$EST_PASSWORD"
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem device.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem renewed.pem

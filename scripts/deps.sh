#!/bin/sh
# Installs from Debian's packages what is missing: what the demo runs, real TPMs (swtpm) and the tools that read them;
# with the argument "all" also what tests and bench run: PostgreSQL, a PKCS#11 token (SoftHSM), a C compiler for the race
# detector, brokers, clients that others wrote, and Node.js with Microsoft's SDKs from npm. Quiet when nothing is missing.
set -eu
missing=
need() { # command package
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need swtpm swtpm
need swtpm_setup swtpm-tools
need certtool gnutls-bin
need tpm2_readpublic tpm2-tools
need gcc gcc
need curl curl
need openssl openssl
[ -e /usr/lib/x86_64-linux-gnu/libtss2-tcti-swtpm.so.0 ] || [ -e /usr/lib/aarch64-linux-gnu/libtss2-tcti-swtpm.so.0 ] || missing="$missing libtss2-tcti-swtpm0"
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
if [ "${1:-}" = all ]; then
	need mosquitto_pub mosquitto-clients
	need mosquitto mosquitto
	need nats-server nats-server
	need node nodejs
	need npm npm
	need softhsm2-util softhsm2
	need pki strongswan-pki
	[ -e /usr/lib/ipsec/plugins/libstrongswan-openssl.so ] || missing="$missing libstrongswan-standard-plugins"
	need javac default-jdk-headless
	[ -e /usr/share/java/bcpkix.jar ] || missing="$missing libbcpkix-java"
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
fi
modules() { [ "${1:-}" != all ] || "$(dirname "$0")/node-modules.sh" >/dev/null; }
if [ -z "$missing" ]; then
	modules "$@"
	exit
fi

if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: missing:$missing" >&2
	echo "hint: install them with this system's package manager, then run make again" >&2
	exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "deps: missing:$missing, and installing needs root" >&2
		echo "hint: run as root: apt-get install -y --no-install-recommends$missing" >&2
		exit 1
	fi
	sudo=sudo
fi
echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 5 "$log" >&2
	echo "deps: installing$missing did not work" >&2
	echo "hint: look at the lines above; is a Debian mirror reachable?" >&2
	exit 1
fi
modules "$@"

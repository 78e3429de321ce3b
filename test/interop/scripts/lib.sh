# What every script begins with: it stops at the first failure and shows each command before it runs it.
# From outside come EST (host:port), LABEL, ANCHORS (PEM of the services CA), ROOT (PEM of the account's root), and
# EST_USER and EST_PASSWORD (what `cradle account basic` was told). The current folder is empty and the script's own.
set -eu
show() { # show COMMAND...: print it as one would type it
	printf '$'
	for word; do
		case $word in
		*[!A-Za-z0-9_@%+=:,./-]*) printf " '%s'" "$word" ;;
		*) printf ' %s' "$word" ;;
		esac
	done
}
try() { # try COMMAND...: end the script when it fails
	status=0
	"$@" 2>stderr || status=$?
	grep -v '^plugin .* failed to load' stderr >&2 || true # strongSwan's plugins that Debian packs apart
	[ $status -eq 0 ] || {
		echo "exit status $status" >&2
		exit $status
	}
}
run() { # run COMMAND...: show it and run it
	show "$@"
	echo
	try "$@"
}
run_to() { # run_to FILE COMMAND...: the same, with its output in a file
	file=$1
	shift
	show "$@"
	echo " >$file"
	try "$@" >"$file"
}
refused() { # refused WANT COMMAND...: the command fails and says WANT
	want=$1
	shift
	show "$@"
	echo
	if "$@" >stdout 2>stderr; then
		echo "was not refused" >&2
		exit 1
	fi
	cat stdout stderr | grep -m 1 -- "$want" || {
		echo "refused without saying '$want':" >&2
		cat stdout stderr >&2
		exit 1
	}
}

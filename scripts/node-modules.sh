#!/bin/sh
# Prints the folder of the npm packages that test/azure/package-lock.json names, Microsoft's SDKs, and fetches them first
# when they are not there. They are kept outside of the clone, one folder for each lock file; no script of a package is run.
# With --if-node it prints nothing, and is content, where they cannot be had.
set -eu
lock=$(dirname "$0")/../test/azure
sum=$(sha256sum "$lock/package-lock.json" | cut -c 1-16)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/cradle/node/$sum
fail=1
[ "${1:-}" != --if-node ] || fail=0
if [ ! -e "$dir/complete" ]; then
	for tool in node npm; do
		if ! command -v $tool >/dev/null 2>&1; then
			[ $fail = 1 ] || exit 0
			echo "node-modules: $tool is not installed" >&2
			echo "hint: make deps installs it" >&2
			exit 1
		fi
	done
	echo "node-modules: fetching Microsoft's SDKs from the npm registry" >&2
	mkdir -p "$dir"
	cp "$lock/package.json" "$lock/package-lock.json" "$dir/"
	if ! (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund) >"$dir/log" 2>&1; then
		tail -n 5 "$dir/log" >&2
		echo "node-modules: npm ci did not work" >&2
		echo "hint: look at the lines above; is the npm registry reachable?" >&2
		exit $fail
	fi
	touch "$dir/complete"
fi
echo "$dir/node_modules"

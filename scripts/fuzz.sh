#!/bin/sh
# Every fuzz target for FUZZTIME (default 10 s). It ends with 1 at the first that finds something.
set -eu
cd "$(dirname "$0")/.."
git ls-files '*_test.go' | xargs grep -H -o '^func Fuzz[A-Za-z0-9_]*' | while IFS=: read -r file func; do
	target=${func#func }
	echo "$(dirname "$file") $target"
	if ! out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" -fuzzminimizetime 1x "./$(dirname "$file")" </dev/null 2>&1); then
		echo "$out"
		exit 1
	fi
	echo "$out" | tail -n 1
done

#!/bin/sh
# Every test, none skipped: in-process tests with the race detector first, then the whole system with
# plain child binaries, and the agent for each processor it must run on.
set -eu
cd "$(dirname "$0")/.."
export CRADLE_REQUIRE=1 # a test whose tool is missing fails instead of being skipped
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
if [ -n "$unformatted" ]; then
	echo "not gofmt-ed: $unformatted" >&2
	exit 1
fi
go vet ./...
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for target in amd64/ arm64/ arm/7; do
	CGO_ENABLED=0 GOOS=linux GOARCH=${target%/*} GOARM=${target#*/} go build -trimpath -ldflags='-s -w' -o "$out/agent" ./cmd/cradle-agent
	size=$(wc -c <"$out/agent")
	echo "cradle-agent linux/$target: $size bytes"
	if [ "$size" -gt 12582912 ]; then
		echo "the agent for $target is over 12 MB" >&2
		exit 1
	fi
done
CGO_ENABLED=1 go test -race -p 3 -timeout 12m $(go list ./... | grep -v '/cradle/test')
# The system's stories mostly wait: they run beside the rest.
go test -timeout 14m ./test/system >"$out/system" 2>&1 &
system=$!
failed=0
go test -p 1 -timeout 14m $(go list ./test/... | grep -v '/cradle/test/system$') || failed=1
wait $system || failed=1
cat "$out/system"
[ $failed = 0 ]
(cd test/zlint && go test ./...) # zlint over the golden certificates; a module of its own

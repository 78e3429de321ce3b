#!/bin/sh
# Every test, none skipped: in-process tests with the race detector first, then the whole system with
# plain child binaries.
set -eu
export CRADLE_REQUIRE=1 # a test whose tool is missing fails instead of being skipped
unformatted=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$unformatted" ]; then
	echo "not gofmt-ed: $unformatted" >&2
	exit 1
fi
go vet ./...
packages=$(go list ./... | grep -v '/test/')
CGO_ENABLED=1 go test -race -timeout 12m $packages
go test -timeout 14m ./test/...

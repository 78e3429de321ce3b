# make demo   the whole story on this machine        make test    every test
# make build  the binaries in bin/                   make bench   figures, as ratios
GO       ?= go
DEVICES  ?= 20
EXIT     ?= 0
DIR      ?= demo
BENCH_JSON ?= bench.json
BUILT    := $(shell git log -1 --format=%cI 2>/dev/null || date -u +%Y-%m-%dT%H:%M:%SZ)
BINARIES := cradle cradle-oem cradle-agent cradle-demo

export GOFLAGS ?= -buildvcs=false

.PHONY: all deps build demo test bench bench-million fuzz clean

all: build

deps: ## install from Debian's packages what demo, tests and bench run
	@./scripts/deps.sh all

build: ## static binaries; the agent must not need cgo. PKCS11=1 builds cradle with cgo, which PKCS#11 modules need
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w -X main.builtAt=$(BUILT)' -o bin/ $(addprefix ./cmd/,$(BINARIES))
	$(if $(filter 1,$(PKCS11)),CGO_ENABLED=1 $(GO) build -trimpath -ldflags='-s -w -X main.builtAt=$(BUILT)' -o bin/ ./cmd/cradle)

demo: build
	@./scripts/deps.sh
	@bin/cradle-demo --devices $(DEVICES) --dir $(DIR) --azure-sdk "$$(./scripts/node-modules.sh --if-node)" $(if $(filter 1,$(EXIT)),--exit)

test: deps
	@./scripts/test.sh

bench: deps
	$(GO) run ./test/bench --json $(BENCH_JSON)

bench-million: deps
	$(GO) run ./test/bench --devices 1000000 --status 1000000 --registered 1000000 --json $(BENCH_JSON)

fuzz: ## each fuzz target for a short while
	@./scripts/fuzz.sh

clean:
	rm -rf bin demo

# Everything that CI runs is here; .ci/run only installs what a fresh machine lacks.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -X github.com/shaman-ha/shaman/internal/daemon.Version=$(VERSION)
PREFIX  ?= /usr
DESTDIR ?=
MINUTES ?= 5
SEED    ?= 0
E2E     ?= .
SHELL    = /bin/bash
.SHELLFLAGS = -o pipefail -c

.PHONY: all build demo test lint unit drivers e2e fuzz bench soak crashpoints rules model model-quick install clean

all: build

build:
	go build -trimpath -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...

# The thing itself, in one command: a cluster loses a node and gets every VE back.
demo: build
	bin/shaman-lab demo

# All checks and all tests.
test: lint unit drivers model-quick e2e

lint: bin/golangci-lint
	test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	bin/golangci-lint run ./...
	deploy/systemd/verify.sh

bin/golangci-lint: tools/go.mod
	cd tools && go build -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

unit:
	go test -race -shuffle=on $$(go list ./... | grep -v -e /internal/lab$$ -e /internal/booted$$ -e /internal/crashpoints$$ -e /internal/hypervisor/)

# Real hypervisors, one after the other: their time-outs are those of a machine.
drivers:
	go test -race -p 1 -shuffle=on -timeout 20m ./internal/hypervisor/...

# Real daemons (with the race detector in them), real etcd, a real systemd, power
# cuts: by themselves, one package after the other, since their time-outs are those
# of a cluster and not of a busy compiler.
e2e:
	go test -shuffle=on -timeout 60m -parallel 2 -v -run '$(E2E)' ./internal/lab | grep -v -e '^=== ' -e 'lab_test.go:[0-9]*: \(lab in\|etcd answers\|node[0-9]* is switched on\)'
	go test -shuffle=on -timeout 15m ./internal/booted
	go test -timeout 60m -v ./internal/crashpoints | grep -v '^=== '

# All crash points, an hour; e2e runs every sixteenth, others each day.
crashpoints:
	CRASHPOINTS_EVERY=1 go test -count=1 -timeout 0 -v ./internal/crashpoints

# Takes the safety rules out of the code, one at a time: some test has to notice.
rules:
	go run ./rules

fuzz:
	for f in FuzzParseDocument; do go test -run '^$$' -fuzz "^$$f$$" -fuzztime 60s ./internal/resources || exit 1; done
	go test -run '^$$' -fuzz '^FuzzParseLocal$$' -fuzztime 60s ./internal/config
	go test -run '^$$' -fuzz '^FuzzParseConf$$' -fuzztime 60s ./internal/hypervisor/process
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime 60s ./internal/hypervisor/scripts

bench:
	go run ./bench

# Random faults: make soak MINUTES=60 SEED=42 (0 takes a seed of its own, and prints it).
soak:
	SOAK_MINUTES=$(MINUTES) SOAK_SEED=$(SEED) go test -count=1 -timeout 0 -run '^TestSoak$$' -v ./internal/lab

# The failover protocol in every order of its steps; needs spin. See model/README.md.
model:
	model/run

model-quick:
	model/run quick

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/shaman bin/shaman-monitor
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system deploy/systemd/shaman-monitor.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/modules-load.d deploy/modules-load.d/shaman.conf
	install -D -m 644 deploy/systemd/shaman.conf.example $(DESTDIR)/etc/shaman/shaman.conf.example
	install -d -m 700 $(DESTDIR)/etc/shaman/fence.d
	for t in iscsi- service- podman-; do install -D -m 755 -t $(DESTDIR)$(PREFIX)/share/shaman/examples/$$t deploy/scripts/$$t/* || exit 1; done
	chmod 644 $(DESTDIR)$(PREFIX)/share/shaman/examples/iscsi-/lib.sh
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 docs/man/shaman.8 docs/man/shaman-monitor.8
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man5 docs/man/shaman.conf.5

clean:
	rm -rf bin .lab

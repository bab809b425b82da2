# What people do with this repository. `make` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
TARGET = $(or $(CARGO_TARGET_DIR),target)
# The newest when this was written.
CARGO_DEB = 3.8.0
# Where SeaweedFS and the stock SDKs are installed for tests and demo.
export STRONGROOM_CACHE ?= $(CURDIR)/.cache
# STRONGROOM_VECTORS, if set, names the official test vectors of the AWS
# Encryption SDK; without it their tests say that they were skipped.

# The test binaries that make a token, whichever they are now or will be: the
# ones that `test-kryoptic` runs again.
WITH_TOKEN = $(shell grep -lrw Hsm tests --include='*.rs' | grep -v '^tests/support/' | sed -E 's,^tests/([^/.]+).*,--test \1,' | sort -u)
TEST_KRYOPTIC = STRONGROOM_TEST_TOKEN=kryoptic cargo test --locked --no-fail-fast $(WITH_TOKEN)

.PHONY: help build install uninstall deb demo setup test test-kryoptic soak bench lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the release binary
	cargo build --release --locked

install: build ## install binary, manual, completions, units, user and group (PREFIX=/usr/local)
	packaging/install "$(TARGET)/release/strongroom" "$(PREFIX)" "$(DESTDIR)"

uninstall: ## remove what `install` put there; configuration, state and user stay
	rm -f "$(DESTDIR)$(PREFIX)"/{bin/strongroom,share/man/man1/strongroom*.1,share/bash-completion/completions/strongroom,share/zsh/site-functions/_strongroom,share/fish/vendor_completions.d/strongroom.fish,lib/systemd/system/strongroom.{service,socket},lib/sysusers.d/strongroom.conf,lib/tmpfiles.d/strongroom.conf}

deb: build ## build a Debian package (cargo-deb, installed into the cache if it is missing)
	@cargo_deb=$$(command -v cargo-deb || echo "$$STRONGROOM_CACHE/cargo-deb/bin/cargo-deb"); \
	[ -x "$$cargo_deb" ] || cargo install cargo-deb --version "$(CARGO_DEB)" --locked --root "$$STRONGROOM_CACHE/cargo-deb"; \
	packaging/deb "$$cargo_deb" "$(abspath $(TARGET))"

demo: ## see the whole of it work here: SoftHSM, SeaweedFS, agent, 256 MiB there and back
	@tests/setup/demo

setup: ## install what the tests need and this machine lacks
	@tests/setup/install

test: setup ## run all tests on SoftHSM, then those with a token again on Kryoptic
	failed=0; cargo test --locked --no-fail-fast || failed=1; $(TEST_KRYOPTIC) || failed=1; exit $$failed

test-kryoptic: setup ## run the tests with a token on Kryoptic alone
	$(TEST_KRYOPTIC)

soak: setup ## the campaigns at full size (6 GiB objects; tens of minutes)
	STRONGROOM_SOAK=1 cargo test --locked --release --no-fail-fast

# Everything is measured and written down, unless BENCH asks for something
# else: BENCH='--only small', BENCH=--help.
bench: ## measure it, against others too, and write docs/benchmarks.md (FULL=1: all sizes in full)
	@tests/setup/peers
	rm -rf "$(TARGET)/criterion"
	$(if $(BENCH),,cargo bench --locked --bench micro)
	cargo bench --locked --bench throughput -- $(or $(BENCH),--write . $(if $(FULL),--full))

lint: ## formatting, clippy, documentation
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

clean: ## remove everything built or installed here
	cargo clean
	rm -rf .cache

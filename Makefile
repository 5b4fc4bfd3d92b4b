# Holdfast. `make help` lists what a person needs; the rest is for the tests.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# ansible-core 2.19 runs on Python 3.11 to 3.13. `make venv PYTHON=…` says which; else tools/venv.py takes the distribution's where it can.
PYTHON ?= python3
INVENTORY ?= production
DISK ?= bare
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

TOOLS := python3 -m tools
.PHONY: help demo demo-info demo-shell demo-down secrets recovery-kit recovery-kit-check recover test test-role test-vm bench lint unit readme lock venv clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ansible-playbook site.yml   bring the production hosts to what the inventory says'
	@echo '  ansible-playbook playbooks/rebuild.yml   bring a lost host back on a bare machine (docs/recovery.md)'

demo: venv ## the whole application on this machine, from nothing, at https://localhost:8443
	@$(TOOLS) demo-up

demo-info: ## where the demo is and how to log in, as JSON (scripts: make -s demo-info)
	@$(TOOLS) demo-info

demo-shell: ## a shell on the demo's host
	@$(TOOLS) demo-shell

demo-down: ## take the demo away again
	@$(TOOLS) demo-down

secrets: venv ## write a random value for every secret that INVENTORY=production lacks
	@$(TOOLS) secrets $(INVENTORY)

recovery-kit: venv ## write the page that opens the bucket of INVENTORY=production when the host is lost
	@$(TOOLS) recovery-kit $(INVENTORY)

recovery-kit-check: venv ## prove that KIT=file, and nothing else, opens the bucket
	@$(TOOLS) recovery-kit-check "$(KIT)" "$(ENDPOINT)"

recover: venv ## bring the inventory and the vault password back with KIT=file
	@$(TOOLS) recover "$(KIT)" "$(ENDPOINT)"

test: venv ## everything that CI runs
	@$(TOOLS) test

test-role: venv ## one role's scenario: make test-role ROLE=postgresql
	@$(TOOLS) molecule $(ROLE)

test-vm: venv ## the site on a real virtual machine under QEMU, with a power cut; hours where KVM does not work
	@$(TOOLS) vm-test $(DISK)

bench: venv ## measure runs, memory and requests; docs/benchmarks.md keeps the figures
	@$(TOOLS) bench

lint: venv ## linters and the conventions of this repository
	@$(TOOLS) lint

unit: venv ## unit tests of plugins and programs
	@$(BIN)/pytest tests

readme: venv ## write each role's README.md from its argument specs
	@$(BIN)/python -m tools.readme

lock: ## write requirements.txt from requirements.in (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header requirements.in --output-file requirements.txt

venv:
	@$(PYTHON) -m tools venv

clean: demo-down ## demo-down, and remove the tools and caches of this checkout
	rm -rf .venv .cache

# What each target needs it makes first: `make run` and `make test` work on a fresh clone.
PYTHON := .venv/bin/python
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header
# What Streamlit runs without: 200 MB for tables and maps that no test looks at, and a watcher of files that Flask
# would use too, and that loses events.
UNUSED := pyarrow pydeck watchdog

.DEFAULT_GOAL := help
.PHONY: help setup setup-test run test test-quick test-long security-results lint format bench fuzz audit build bundle requirements manifests images clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and install what Ghost needs
	@scripts/setup

setup-test: ## The same, and what the tests and linters need
	@scripts/setup --test

run: setup ## Play the demo, then print the client configuration
	@$(PYTHON) -m ghost_mcp.cli demo

test: setup-test ## Run all tests (JOBS=N for N processes, ARGS=... for pytest)
	@scripts/test $(ARGS)

test-quick: setup-test ## Run the tests that take under two minutes
	@$(PYTHON) -m pytest -m "not slow and not docker and not npm" tests/unit tests/contract $(ARGS)

test-long: setup-test ## Run the security tests in their long forms: hundreds of kills
	@GHOST_TEST_LONG=1 scripts/test --timeout 14400 tests/security $(ARGS)

security-results: setup-test ## Run what is tried on the walls and renew the table of results (ARGS=... for pytest)
	@scripts/test -n 0 -p tests.security.results $(or $(ARGS),tests/security tests/servers tests/hub)

lint: setup-test ## Check style, types, layers and the tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml ghost_mcp servers hub scripts configs
	scripts/check-tree

format: setup-test ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-test ## Measure speed and size against floors of the same run
	@$(PYTHON) -m tests.bench $(ARGS)

fuzz: setup-test ## Fuzz the wire format and the parsers for long (SECONDS_EACH=N for each target of atheris)
	@$(PYTHON) -m pytest --timeout 3600 --hypothesis-profile fuzz tests/fuzz $(ARGS)
	@scripts/fuzz $(or $(SECONDS_EACH),300)

audit: setup-test ## Look for known vulnerabilities of what is installed, where their service is reachable
	@$(PYTHON) scripts/audit

build: setup-test ## Build the sdist and the wheel into dist/
	@rm -rf dist
	$(BIN)/uv build --quiet --no-build-isolation --python $(PYTHON)

bundle: setup ## Build the MCPB bundle into dist/
	@$(PYTHON) configs/clients/bundle.py

manifests: setup-test ## Render the Helm chart into the kustomize base
	.venv/bin/python scripts/manifests

requirements: setup-test ## Compile the hash-pinned requirements anew (UPGRADE=1: newest versions)
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements/runtime.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) -c requirements/runtime.txt pyproject.toml --group dev \
		$(addprefix --no-emit-package ,$(UNUSED)) -o requirements/dev.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) -c requirements/dev.txt --group build \
		-o requirements/build.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group fuzz -o requirements/fuzz.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) -c requirements/runtime.txt configs/images/documents.in \
		-o configs/images/documents.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) -c configs/images/documents.txt configs/images/kernels.in \
		-o configs/images/kernels.txt

images: setup-test ## Build all container images (BASE=... where no registry is reachable; half an hour at first)
	@$(BIN)/ghost image build $(if $(BASE),--base $(BASE)) runtime slim desktop full

clean: ## Remove everything that was made here
	rm -rf .venv .cache dist build .coverage .coverage.* htmlcov .hypothesis .mypy_cache \
		.pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

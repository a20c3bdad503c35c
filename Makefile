# The two commands are `make demo` and `make test`; both set up what they need.
# Needs Python 3.11 with venv, make and git.

PYTHON ?= python3.11
DEMO_DIR ?= demo-data
SEEDS ?= 5
AT_LEAST ?= 12
GROUND ?= sqlite
TESTS ?= tests
WORKERS ?= 2

# Where it is set (many images do), each process compiles anew all that it imports: seconds for a broker.
export PYTHONDONTWRITEBYTECODE =

UV = 0.13.9
RUN = .venv/bin/python
# Runs in a network of its own, with no other: who makes more of them there, and cables between them, meets nothing of this
# machine. Says what is missing where the machine does not let us.
APART = $(RUN) tests/support/islands.py
NODE = tests/conformance/node

.PHONY: setup demo test flows test-postgres test-replicas aws residency conformance clients objects objects-azure worlds lint chaos finance ledger lock lock-clients lock-node
.DELETE_ON_ERROR:

setup: .venv/ok

# Locked and hashed. uv does in seconds what pip does in minutes; without uv, pip installs the same lock.
# The project is installed last and editable: .venv/bin/broker runs this checkout. What it imports is compiled at once.
.venv/ok: requirements.lock pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@echo "setting up .venv from requirements.lock"
	@if $(RUN) -m pip install -q --disable-pip-version-check --retries 5 "uv==$(UV)"; then \
		UV_HTTP_RETRIES=5 .venv/bin/uv pip install -q --python $(RUN) --require-hashes -r requirements.lock && \
		UV_HTTP_RETRIES=5 .venv/bin/uv pip install -q --python $(RUN) --no-deps --no-build-isolation -e .; \
	else \
		$(RUN) -m pip install -q --disable-pip-version-check --retries 5 --require-hashes -r requirements.lock && \
		$(RUN) -m pip install -q --disable-pip-version-check --retries 5 --no-deps --no-build-isolation -e .; \
	fi
	@$(RUN) -c "import broker.cli.main, broker.compose, markets.sandbox.__main__, solver.program"
	@touch $@

demo: .venv/ok
	@DEMO_DIR="$(DEMO_DIR)" .venv/bin/broker demo

test: .venv/ok
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadgroup $(TESTS)

# Whole batches at length, one thing going wrong in each.
flows: .venv/ok
	$(RUN) -m pytest -q -n $(WORKERS) -m flows tests/system

# The tests that are given a database, on a throw-away PostgreSQL server.
test-postgres: .venv/ok
	$(RUN) tests/support/postgres_server.py $(RUN) -m pytest -q -n $(WORKERS) --timeout 400 --database $(TESTS)

# Two brokers on one PostgreSQL, behind one URL: killed, paused, cut off by the kernel; the database killed.
test-replicas: .venv/ok
	$(APART) $(RUN) -m pytest -q -n $(WORKERS) -m replicas tests/system

# EC2 through moto's server, and spot machines in networks of their own (root, or user namespaces).
aws: .venv/ok
	$(RUN) -m pytest -q -n $(WORKERS) -m aws tests/markets tests/broker/control tests/workers

# Residency at length: Cedar as the judge of 10,000 random policies.
residency: .venv/ok
	$(RUN) -m pytest -q -n $(WORKERS) -m residency tests/solver/residency tests/broker/api/test_residency_worlds.py tests/broker/api/test_many_replays.py

# Other people's programs judge finance's exports: FOCUS validators, beancount, hledger (installed by .ci/finance).
finance: .venv/ok
	@bash .ci/finance $(FINANCE_TOOLS)

# The books at length: the state machine with many times its steps, and pymerkle as the judge of our trees (in LEDGER_TOOLS).
LEDGER_TOOLS ?= .cache/pymerkle
ledger: .venv/ok
	BROKER_LONG_MACHINES=1 $(RUN) -m pytest -q -n 0 --timeout 900 tests/ledger/test_books_machine.py
	$(RUN) tests/conformance/pymerkle_judge.py $(LEDGER_TOOLS)

# Other people's clients at length: the official Node client (needs node and npm), 300 MB uploads, every operation fuzzed; and
# answers that schemathesis makes of providers' official documents (in BROKER_REFERENCE), read by our adapters.
conformance: .venv/ok $(NODE)/node_modules/.package-lock.json
	$(RUN) -m pytest -q -n $(WORKERS) -m conformance tests/conformance tests/markets/sources

# Providers' own SDKs read the answers that our adapters' tests are made of (installed by .ci/clients).
clients: .venv/ok
	@bash .ci/clients $(CLIENTS)

# Random queues and markets, each plan checked: SEEDS of them. The last line is JSON: {"worlds", "faults"}.
worlds: .venv/ok
	@$(RUN) tests/solver/worlds.py --worlds $(SEEDS)

# On a real S3 server: a whole batch, 300 MB in flat memory, and the tests that touch objects.
objects: .venv/ok
	BROKER_TEST_OBJECTS=s3 $(RUN) -m pytest -q -n $(WORKERS) -m 'not conformance and not replicas' tests/system/test_objects.py \
		tests/jobs/test_objects.py tests/jobs/test_garbage.py tests/jobs/test_results.py tests/jobs/test_views.py \
		tests/jobs/test_own_parts.py tests/broker/control/test_garbage.py tests/broker/api/test_upload.py \
		tests/broker/api/test_uploads.py tests/broker/api/test_results.py tests/broker/api/test_less_work.py \
		tests/broker/api/test_worker_commits.py tests/broker/api/test_retention.py

# The same on Azurite (installed by .ci/azurite; BROKER_AZURITE names its program): no signed requests, which the broker does not
# use there. Google's API as obstore speaks it (XML, create-only by generation) no emulator that can be installed has.
objects-azure: .venv/ok
	BROKER_AZURITE=$(BROKER_AZURITE) BROKER_TEST_OBJECTS=azure $(RUN) -m pytest -q -n $(WORKERS) \
		-m 'not conformance and not replicas' tests/jobs/test_objects_azure.py tests/jobs/test_objects.py tests/jobs/test_garbage.py \
		tests/jobs/test_results.py tests/jobs/test_views.py tests/jobs/test_own_parts.py tests/broker/control/test_garbage.py \
		tests/broker/api/test_upload.py tests/broker/api/test_uploads.py tests/broker/api/test_results.py \
		tests/broker/api/test_less_work.py tests/broker/api/test_worker_commits.py tests/broker/api/test_retention.py

$(NODE)/node_modules/.package-lock.json: $(NODE)/package-lock.json
	cd $(NODE) && npm ci --no-audit --no-fund --fetch-retries 5

lint: .venv/ok
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The last line is JSON: {"seeds", "lost", "duplicated", "leaked", "ledger_mismatches", "secrets_leaked"}; on stderr is before it
# how often which fault struck. One of the ground's that was planned for several worlds and struck in none fails the run.
# GROUND=postgres: two brokers on one PostgreSQL, each in a network of its own; the leader, the database and the cables fail, too.
# MUTATE=fence+disjoint|sweeper|hold takes one protection out; its field must then be more than 0.
chaos: .venv/ok
	@$(if $(filter postgres,$(GROUND)),$(APART)) $(RUN) tests/system/chaos.py --seeds $(SEEDS) --ground $(GROUND) $(if $(MUTATE),--mutate $(MUTATE)) \
		$(if $(WITHIN),--within $(WITHIN) --at-least $(AT_LEAST))

# The lock names no index: neither a host nor a path of the machine that made it.
lock:
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--all-extras --group dev pyproject.toml -o requirements.lock
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock \
		--extra postgres --extra aws --extra gcp --extra parquet --extra xlsx --extra chart pyproject.toml -o deploy/container/requirements.lock
	! grep -n '://' requirements.lock deploy/container/requirements.lock

# The environments of .ci/clients: what we ask for is in .ci/locks/NAME.in.
lock-clients: .venv/ok
	for name in sdks kubernetes; do \
		.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header .ci/locks/$$name.in -o .ci/locks/$$name.txt || exit 1; \
	done
	! grep -n '://' .ci/locks/*.txt

lock-node:
	cd $(NODE) && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund
	! grep -n '"resolved"' $(NODE)/package-lock.json

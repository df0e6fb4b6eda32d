# `make demo` and `make test` need nothing but make and a Python 3.11 to 3.13; everything else goes into .venv.

PYTHON ?= python3
# Another build of torch, or a folder of wheels: make TORCH=... or the usual PIP_* variables.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
OUT    ?= out/demo
DEPLOYMENT ?= out/deployment
# Tests and the example, with one thread in each process: on small models torch's threads mostly wait for one another.
WORKERS ?= 2
demo test wide nightly fuzz deployment: export OMP_NUM_THREADS = 1

.PHONY: demo test wide nightly fuzz deployment lint audit docs dist format clean

demo: $(VENV)/run.stamp
	$(BIN)/fxprune demo --out $(OUT) --force

# The root of the tests is their folder: pytest would import the folder above as a package, under whatever name it has.
# The tests of a file run in one process, because they share what is made once; in order, as the long files come first.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --rootdir=tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Further rows of tables whose first rows `make test` runs: more models, more passes, more ways to interrupt one.
wide: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --rootdir=tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'wide and not slow' $(ARGS)

# The property tests alone, on new draws every time; what fails is kept in .hypothesis and tried first the next time.
nightly: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --rootdir=tests -n $(WORKERS) -m hypothesis --hypothesis-profile=nightly --timeout=3600 $(ARGS)

# Ten thousand damaged files, others every time: each is read, or refused with a message.
fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --rootdir=tests tests/security/test_fuzz.py -m slow $(ARGS)

# Pruned models in runtimes that people deploy. What these need is installed into environments below DEPLOYMENT, which are
# used again; FXPRUNE_LARGE=1 runs vLLM too, which needs 3 GB.
deployment: $(VENV)/dev.stamp
	FXPRUNE_DEPLOYMENT='$(DEPLOYMENT)' \
	  $(BIN)/python -m pytest --rootdir=tests tests/deployment -m deployment --timeout=7200 $(ARGS)

# mypy and import-linter want the package under its own name, whatever this checkout is called.
lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/fxprune
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p fxprune
	$(BIN)/lint-imports --no-logo

# Known vulnerabilities of what is pinned and of what came with it, and risky lines of the package. pip-audit asks PyPI
# over the internet; without --strict it would call a package clean that it could not look up.
audit: $(VENV)/audit.stamp
	$(BIN)/bandit -q -c pyproject.toml -r .
	$(BIN)/python -m pip list --format=freeze --exclude-editable | sed 's/+.*//' > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt -r $(VENV)/installed.txt || \
	  { echo "error: the audit found a vulnerability, or could not look a package up" >&2; \
	    echo "hint: it says which above; advisories are read from PyPI, over the internet" >&2; exit 1; }

# The site, in out/site. A broken link, or a page that is not in the navigation, is an error.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The wheel and the source distribution: built, checked, and tried in an empty environment, outside of the checkout.
dist: $(VENV)/dist.stamp
	TORCH='$(TORCH)' $(BIN)/python .ci/dist.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch on its own and first, so that a build for this machine's processor that pip can see is the one that is kept.
$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13" >&2; \
	    echo "hint: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	@touch $@

# What the example uses: it trains adapters, and writes ONNX.
$(VENV)/run.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) -e '.[lora,onnx]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/docs.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/dist.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[dist]'
	@touch $@

$(VENV)/audit.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[audit]'
	@touch $@

clean:
	rm -rf $(VENV) build dist out/site *.egg-info

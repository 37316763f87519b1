# Everything a fresh machine needs: `make demo` shows the main job, `make test` checks all of it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test lint docs bench constraints clean

demo: $(VENV)/demo.stamp  ## the main job on the built-in offline benchmark
	$(BIN)/python -m fusion_ensemble_plugin.demo

# Two processes share the cores; a file's tests stay together, for they share what its fixtures made.
test: lint  ## linters, types, import contracts and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict

bench: $(VENV)/demo.stamp  ## every benchmark, one after another, one table of all, and the documentation's page
	@for script in startup training decoding; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python -m benchmarks; status=$$?; $(BIN)/python -m benchmarks.page && exit $$status

# A stamp is newer than what it was made from: a second call installs nothing.
$(VENV)/torch.stamp: constraints.txt
	@echo "Creating $(VENV) and installing torch ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/%.stamp: $(VENV)/torch.stamp constraints.txt pyproject.toml
	@echo "Installing the package with the extra [$*] ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[$*]"
	@touch $@

# The newest versions that work together: installed afresh, then written down.
constraints:
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install -qq "$$(grep '^torch==' constraints.txt)"
	$(VENV)-constraints/bin/python -m pip install -qq ".[dev]"
	$(VENV)-constraints/bin/python .ci/freeze.py > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)-constraints

clean:
	rm -rf $(VENV) $(VENV)-constraints build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

VENV ?= .venv
BIN = $(VENV)/bin
# The machine's own BLAS settings may be for older builds; threads follow the cores.
PYTHON ?= python3

PYTEST = $(BIN)/pytest -n 3 --dist worksteal
# Or each of the hundreds of processes that the tests start compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-slow test-all lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U "pip>=25.1"
	$(BIN)/pip install -q -c constraints.txt -e ".[dicomweb,openvino,postgres,s3,train]" --group test --group lint
	touch $@

demo: install
	$(BIN)/medenhance-dicom enhance sample_data/study -o enhanced --preview
	@echo
	@echo "The same on files that are broken: each gets its reason, and the exit code says so."
	@$(BIN)/medenhance-dicom enhance sample_data/broken -o enhanced/broken || test $$? -eq 6
	@echo
	@$(BIN)/medenhance-dicom verify enhanced --source sample_data
	@echo
	@echo "Look at the pictures, before beside after:"
	@find enhanced -name '*.png' | sort

test: install
	$(PYTEST) --timeout 120 -m "not slow and not long and not gpu"

test-slow: install
	$(PYTEST) --timeout 900 --durations 40 -m "slow"

test-all: install
	$(PYTEST) --timeout 900 -m "not long and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) enhanced build dist

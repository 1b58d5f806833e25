# Each target sets up what it needs, once: a stamp file in .venv remembers what is done.
PYTHON ?= python3
# Extra arguments for pytest or the bench, for example: make test ARGS="-k languages"
ARGS ?=
# Folder of training/recipes that train-emoji replays: emoji, or emoji-gpu for 128 px on one GPU.
RECIPE ?= emoji

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
CLDR := /usr/share/unicode/cldr/common/annotations/en.xml
DEBIAN := fonts-noto-color-emoji unicode-cldr-core
# What the app's tests look at the page with: a browser, and letters for all 18 languages.
BROWSER := chromium fonts-noto-core fonts-noto-cjk fonts-thai-tlwg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test soak check audit format docs bench app train-emoji rehearse debian browser

help:
	@echo "make demo         draw two pictures with the bundled model, into demo/"
	@echo "make test         run the tests (ARGS=... goes to pytest)"
	@echo "make soak         break it in every way we know, as often as the plan says, and print a table (an hour or two)"
	@echo "make check        lint, types, spelling, security, layers, and docs/cli.md against --help"
	@echo "make audit        look all pinned packages up among known advisories; fails where one could not be (needs the net)"
	@echo "make format       let ruff rewrite the code"
	@echo "make docs         write docs/cli.md anew"
	@echo "make bench        measure speed (an hour on two cores), or ARGS=quality the pictures (half an hour)"
	@echo "make train-emoji  train the bundled model from nothing (hours on two cores), or RECIPE=emoji-gpu on a GPU"
	@echo "make rehearse     train and measure the papers' claims in a small world (some three hours on two cores)"
	@echo "make app          open the app in a browser (ARGS=... as of altdiffusion app)"
	@echo "Each does its own set-up on first use, in .venv. PYTHON=... picks the interpreter (3.11 or newer)."

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; PYTHON=python3.12 make ... picks another one" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "set-up: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-core: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "set-up: installing altdiffusion and its dependencies in $(VENV) (one to several minutes, once)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "set-up: installing altdiffusion with what training and the tests need in $(VENV) (one to several minutes, once)"
	@$(PIP) install -c constraints.txt -e '.[app,train,retrieval,eval,scale,openvino,dev]'
	@touch $(VENV)/.stamp-core $(VENV)/.stamp-app $@

# The pictures and names that training learns from; the library itself needs neither.
debian:
	@if [ -e $(FONT) ] && [ -e $(CLDR) ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "set-up: installing the Debian packages $(DEBIAN), which training learns from"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(DEBIAN); } > /dev/null; \
	else \
		echo "Training and its tests need the Debian packages $(DEBIAN). Install them as root:" >&2; \
		echo "    apt-get install $(DEBIAN)" >&2; \
		echo "or run the other tests alone: $(BIN)/python -m pytest --ignore tests/training" >&2; \
		exit 1; \
	fi

browser:
	@if command -v chromium > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "set-up: installing the Debian packages $(BROWSER), for the tests of the app's page"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(BROWSER); } > /dev/null; \
	else \
		echo "The tests of the app's page are skipped: they need the Debian packages $(BROWSER)"; \
	fi

demo: $(VENV)/.stamp-core
	@echo 'drawing "a lobster" and "กุ้งมังกร" into demo/'
	@mkdir -p demo && rm -f demo/lobster*.png
	@printf '%s\n' 'en: a lobster' 'th: กุ้งมังกร' | \
		HF_HUB_OFFLINE=1 $(BIN)/altdiffusion generate --prompt-file - --seed 7 -o demo/lobster.png

# A worker for each core, up to four, of one thread each. A file stays with one worker, for the models its tests share.
test: $(VENV)/.stamp-dev debian browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

# One case after the other, as many of them measure memory and time.
soak: $(VENV)/.stamp-dev debian browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability --soak -m "slow or not slow" --timeout 9000 $(ARGS)

check: $(VENV)/.stamp-dev
	@echo "ruff" && $(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@echo "basedpyright" && $(BIN)/basedpyright
	@echo "typos" && $(BIN)/typos
	@echo "bandit" && $(BIN)/bandit --quiet --configfile pyproject.toml --recursive altdiffusion training app bench docs .ci hatch_build.py
	@echo "layers" && $(BIN)/python -m pytest --quiet --no-header tests/test_layers.py
	@echo "docs/cli.md" && $(BIN)/python docs/write_cli.py --check

audit: $(VENV)/.stamp-dev
	@$(BIN)/python .ci/audit.py

format: $(VENV)/.stamp-dev
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format .

docs: $(VENV)/.stamp-core
	@$(BIN)/python docs/write_cli.py

bench: $(VENV)/.stamp-dev debian
	@$(BIN)/python -m bench $(ARGS)

train-emoji: $(VENV)/.stamp-dev debian
	@PYTHON=$(CURDIR)/$(BIN)/python ARGS="$(ARGS)" bash training/recipes/$(RECIPE)/train.sh

rehearse: $(VENV)/.stamp-dev debian
	@PYTHON=$(CURDIR)/$(BIN)/python ARGS="$(ARGS)" bash training/recipes/rehearsal/run.sh

$(VENV)/.stamp-app: $(VENV)/.stamp-venv pyproject.toml constraints.txt
	@echo "set-up: installing the app in $(VENV) (one to several minutes, once)"
	@$(PIP) install -c constraints.txt -e '.[app,retrieval]'
	@touch $(VENV)/.stamp-core $@

app: $(VENV)/.stamp-app
	@$(BIN)/python -m app --open-browser $(ARGS)

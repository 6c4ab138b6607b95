# Every target makes the virtual environment first if it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo explore gallery notebook wheel screenshots test pages check format bench peers gpu results docs site site-serve torture clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: .venv/installed  ## the main job on the included model: pictures, numbers, demo/report.html
	$(BIN)/featurestore demo --out demo

explore: .venv/installed  ## the demo's store in a browser; the demo is made first if it is missing
	test -f demo/store/manifest/store.json || $(BIN)/featurestore demo --out demo
	$(BIN)/featurestore explore demo/store

gallery: .venv/installed  ## the pictures of docs/gallery.md, from the demo's store; the demo is made first if it is missing
	test -f demo/store/manifest/store.json || $(BIN)/featurestore demo --out demo
	$(BIN)/python docs/draw_gallery.py demo/store

notebook: .venv/installed  ## docs/tutorials/find-and-remove.ipynb run, and its page
	$(BIN)/python docs/notebook.py

wheel: .venv/installed  ## the package as others get it: the wheel in an empty environment, the demo from there
	PYTHON=$(CURDIR)/$(BIN)/python .ci/wheel

screenshots: .venv/installed  ## the pictures of docs/explorer.md, by the tests' browser, from the demo's store
	$(BIN)/python -m tests.featurestore.explorer.screenshots demo/store docs/images/explorer

test: .venv/installed  ## the tests that need no GPU and less than a minute each
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

pages: .venv/installed  ## every program of the documentation, word for word: pages, tutorials, notebook, examples
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m pages

check: .venv/installed  ## lint, format, types, layers, SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/sqlfluff lint queries/sql

format: .venv/installed  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

peers: .venv/installed  ## install other SAE libraries and compare with them
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	$(BIN)/python -m pip install --quiet --no-deps dictionary-learning==0.1.0 overcomplete==0.3.0 eval-unlearn==1.1.2
	$(BIN)/python -m pytest -m peers

results: .venv/installed  ## every unlearning method searched, judged and attacked; writes docs/results.md; goes on where it stopped
	$(BIN)/python -m benchmarks.unlearning.results

docs: .venv/installed  ## docs/cli.md from the help texts, docs/architecture.md and its picture from the imports, the table of docs/pipelines.md from the tests
	$(BIN)/python -m featurestore.cli.reference docs/cli.md
	$(BIN)/python docs/draw_house.py
	PYTHONPATH=. $(BIN)/python docs/list_pipelines.py

site: .venv/installed  ## the documentation as pages that need no network: build/site/index.html
	$(BIN)/zensical build --strict --config-file mkdocs.yml

site-serve: .venv/installed  ## the same, served and rebuilt while you write
	$(BIN)/zensical serve --config-file mkdocs.yml

bench: .venv/installed  ## time against peers; writes benchmarks/results
	for file in ablate collect waiting read layout score train feed; do $(BIN)/python benchmarks/$$file.py || exit 1; done

gpu:  ## everything that needs a GPU: tests, benchmarks, what is below its bar; eight minutes, with the python that has torch
	$(PYTHON) -m benchmarks.gpu

torture: .venv/installed  ## power cuts, full disks, kills, damage: ten minutes; writes docs/reliability.md
	$(BIN)/python -m tests.torture

clean:  ## the virtual environment and the demo's output
	rm -rf .venv demo

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

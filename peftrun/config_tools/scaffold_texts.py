"""Texts of the files of a package of configs."""

from string import Template

PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "$version"
description = "Configs of our team for peftrun"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["peftrun>=$peftrun"]

[project.entry-points."peftrun.configs"]
$name = "$name"

[tool.setuptools]
packages = ["$name"]

[tool.setuptools.package-data]
$name = ["*/*.yaml", "data/*"]
""")

INIT = Template('''\
"""Configs of our team for peftrun; found by it once this package is installed."""
''')

EXPERIMENT = Template("""\
# @package _global_
# What this template is for: say it here in a line.
# peftrun experiment=$name$slots
$body""")

ROWS = Template("""\
# @package _global_
# Our own pairs of prompt and completion: whoever uses it names the file, and the rank if they like.
# peftrun experiment=${name}_rows slots.rows=mine.jsonl
defaults:
  - override /task: instruction
  - override /lora: $name

template:
  name: $name/rows
  version: $version
  slots:
    rows: {type: path, help: "a .jsonl, csv or parquet with columns prompt and completion"}
    rank: {type: int, help: how large the adapter is}
slots:
  rows: ???
  rank: 8
task:
  data:
    path: $${slots.rows}
lora:
  r: $${slots.rank}
""")

LORA = Template("""\
# LoRA as our team uses it: on the attention alone.
# peftrun lora=$name
defaults:
  - lora
  - _self_

r: 8
target_modules: [q_proj, k_proj, v_proj, o_proj]
""")

README = Template("""\
# $name

Configs of our team for peftrun, as a package: installed beside it, its options are found by every command.

## Use

```
pip install .                                          # or from your index, or git+https://HOST/$name@v$version
peftrun --help                                         # lists these options among the others
peftrun experiment=$name$slots
peftrun experiment=${name}_rows slots.rows=mine.jsonl  # asks for what only you know: `slots`
peftrun lora=$name
```

The run's config.yaml and record.json say which template it was made from, and its version.

## Change

One folder a group, as peftrun has them: `$name/experiment/`, `$name/lora/`, `$name/task/`, … Line 1 of a file says what it is, line 2 what to type. Names start
with `$name`, since a file with the name of one of peftrun's own options is never read. When a template changes, raise `template.version` in it, and
`version` in pyproject.toml; who depends on it pins `$name==$version`.

## Check

Each option composes, each value is allowed, each method finds its layers. Needs no GPU and no data, and ends with exit code 1 if something is wrong:

```
pip install -e . && peftrun action=check               # without torch: build=false
peftrun --config-dir $name action=check                # not installed
```
""")

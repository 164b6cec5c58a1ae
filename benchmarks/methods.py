"""Every option of group lora: what it trains and what it weighs on the embedded model, and that it comes back and merges.

Trainable share and size of the adapter file are those of a fresh adapter on the embedded model (SmolLM2-135M-Instruct), with
the option's own settings; max |Δlogit| after a reload in float32 and after a proved merge are those of a tiny Llama that was
trained for four steps, the very runs of tests/test_methods.py, which also holds the effect. `experts` (a mixture of experts) and `loftq` (a 4-bit
base) have tests of their own: tests/test_experts.py, tests/test_quantized.py.

    python benchmarks/methods.py [--output benchmarks/results/methods.md]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Measures and writes."""
    from conftest import build_llama
    from test_methods import EFFECTS, FITTING, OPTIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "methods.md")
    output, where = parser.parse_args().output, report.machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = build_llama(folder / "tiny-llama")
        rows = write_rows(folder)
        for option in OPTIONS:
            figures[option] = size_of(option) | life_of(option, FITTING.get(option, []), tiny, rows, folder)
            print(option, figures[option], flush=True)
    header = ["lora=", "asserted effect", "trainable", "adapter MB", "reload max abs Δlogit", "merge max abs Δlogit"]
    table = report.table(header, [cells(option, EFFECTS[option][0], one) for option, one in figures.items()])
    report.write(output, "Adapter methods", [__doc__.split("\n\n")[1], table], {"methods": figures}, where)


def write_rows(folder: Path) -> Path:
    """Forty pairs: a number is even or odd."""
    file = folder / "pairs.csv"
    lines = [f"Is {n} even?,{'no' if n % 2 else 'yes'}" for n in range(40)]
    file.write_text("\n".join(["prompt,completion", *lines]) + "\n")
    return file


def size_of(option: str) -> dict[str, Any]:
    """Trainable parameters, their share, and bytes of the file, on the embedded model; with a few rows where it starts from rows."""
    import torch
    from peft import get_peft_model_state_dict
    from test_methods import rows

    from peftrun.adapters import attach
    from peftrun.composition.compose import compose_run
    from peftrun.composition.spec import build_spec
    from peftrun.models.base import load_base
    from peftrun.models.device import Device

    spec = build_spec(compose_run(["model=embedded", f"lora={option}"]).cfg)
    base = load_base(spec.model, Device("cpu", torch.float32, ""))
    net = attach.attach_adapter(base, spec.lora, 0, attach.InitData(rows(base), 60))
    trained, total = attach.count_parameters(net)
    kept = get_peft_model_state_dict(net, save_embedding_layers=False).values()
    return {
        "trainable": trained,
        "share": trained / total,
        "bytes": sum(one.numel() * one.element_size() for one in kept),
    }


def life_of(option: str, fitting: list[str], tiny: Path, rows: Path, folder: Path) -> dict[str, Any]:
    """Reload and merge errors; None where PEFT cannot merge."""
    from conftest import TINY_STEPS, cli_here

    given = [
        "model=pretrained", f"model.name_or_path={tiny}", "task=instruction", f"task.data.path={rows}", "task.data.num_test_rows=8",
        "task.max_length=64", "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2", f"lora={option}", *fitting,
    ]  # fmt: skip
    run = cli_here(folder, *given, *TINY_STEPS)
    again = cli_here(folder, *given, "action=reload", f"adapter={run.run_dir}")
    merged = cli_here(folder, *given, "action=merge", f"adapter={run.run_dir}")
    return {
        "reload": again.record()["adapters"][0]["saved_difference"],
        "merge": merged.record()["merge"]["max_logit_difference"] if merged.code == 0 else None,
    }


def cells(option: str, effect: str, one: dict[str, Any]) -> list[str]:
    """One row."""
    merge = "PEFT cannot" if one["merge"] is None else f"{one['merge']:.1e}"
    return [
        option,
        effect,
        f"{one['trainable']:,} ({one['share']:.3%})",
        f"{one['bytes'] / 1e6:.2f}",
        f"{one['reload']:.1e}",
        merge,
    ]


if __name__ == "__main__":
    main()

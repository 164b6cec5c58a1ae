"""How far a cell that is trained among others is from its lone run, after 50 steps in float32.

On the embedded model (ranks, learning rates, seeds, rsLoRA, dropout, early ends) and on a random GPT-2, whose layers are Conv1D.

    python benchmarks/sweep_equality.py [--steps N]
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

from peftrun.artifacts.run_layout import RECORD
from peftrun.composition.spec import build_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")
COMMON = [
    "device.dtype=float32",
    "trainer.save_strategy=no",
    "action.evaluate_before=false",
    "task.data.num_test_rows=16",
]
CELLS = [
    ["lora.r=4", "trainer.learning_rate=1e-3"],
    ["lora.r=8", "trainer.learning_rate=3e-4", "seed=1"],
    ["lora.r=16", "trainer.learning_rate=1e-3", "seed=2"],
    ["lora.use_rslora=true", "lora.lora_alpha=16", "trainer.learning_rate=1e-3"],
    ["lora.lora_dropout=0.1", "trainer.learning_rate=1e-3", "trainer.weight_decay=0.01"],
]
EARLY = ["lora.r=8", "trainer.learning_rate=3e-3"]  # ends at half the steps


def main() -> None:
    """Trains every cell twice and writes results/sweep_equality.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from conftest import build_gpt2

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows = Path("pairs.jsonl")
        pairs = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(60)]
        rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        conv1d = [
            "model=pretrained", f"model.name_or_path={build_gpt2(Path('gpt2')).absolute()}", "task=instruction",
            f"task.data.path={rows.absolute()}", "device=cpu",
        ]  # fmt: skip
        found = {
            "SmolLM2-135M-Instruct": compared(["trainer.per_device_train_batch_size=2"], options.steps, Path("a")),
            "GPT-2, random, Conv1D, dropout 0.1 in the base": compared(conv1d, options.steps, Path("b")),
        }
    table = [
        [
            base,
            " ".join(cell),
            f"{one['relative']:.1e}",
            f"{one['largest']:.1e}",
            f"{one['together']:.5f}",
            f"{one['alone']:.5f}",
        ]
        for base, cells in found.items()
        for cell, one in cells
    ]
    parts = [
        f"Float32, {options.steps} steps, six cells of each base trained together and each alone. Relative: largest ‖Δ‖ / ‖W‖ of a trained "
        "tensor; largest: largest |Δ| of an element over the largest |W| of its tensor.",
        report.table(["base", "cell", "relative", "largest", "held-out loss, together", "alone"], table),
    ]
    report.write(report.RESULTS / "sweep_equality.md", "A cell and its lone run", parts, found, report.machine())


def compared(common: list[str], steps: int, folder: Path) -> list[tuple[list[str], dict[str, float]]]:
    """Each cell's overrides and distances."""
    from peftrun.composition import compose
    from peftrun.io import atomic_files
    from peftrun.models import base_cache
    from peftrun.planning.joint_memory import Limits
    from peftrun.runs import execute

    cells = [[*cell, f"trainer.max_steps={steps}"] for cell in CELLS] + [[*EARLY, f"trainer.max_steps={steps // 2}"]]
    specs = [build_spec(compose.compose_run([*common, *COMMON, *cell]).cfg) for cell in cells]
    joint = [folder / f"together{n}" for n in range(len(cells))]
    with base_cache.keep_base_cached():
        execute.execute_jointly(specs, joint, Limits(cells=len(specs)))
        for number, spec in enumerate(specs):
            execute.execute_run(spec, folder / f"alone{number}")
    found = []
    for number, cell in enumerate(cells):
        alone = folder / f"alone{number}"
        losses = [atomic_files.read_json(one / RECORD)["metrics"]["after"]["loss"] for one in (joint[number], alone)]
        found.append((cell, distances(joint[number], alone) | {"together": losses[0], "alone": losses[1]}))
    return found


def distances(one: Path, other: Path) -> dict[str, float]:
    """Largest over the tensors of two adapters."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    pairs: list[tuple[Any, Any]] = [(a[key], b[key]) for key in b]
    return {
        "relative": max(((x - y).norm() / y.norm()).item() for x, y in pairs),
        "largest": max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs),
    }


if __name__ == "__main__":
    main()

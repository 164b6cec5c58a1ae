"""Faults planted into the files of a merge, and what the proof says of them: 0.1 and 7 billion parameters, bfloat16 and float32.

A random Llama whose attention has biases, and a LoRA of rank 16 on q and v that trains biases too, are merged and proved with
`peftrun action=merge`. Then each fault is planted in a layer of its own, and the proof must name every one of them and nothing else; a file that was cut
short, and a merge with half of alpha, are proved on their own. For each planted tensor: its error and the adapter's effect as norms over the whole
tensor, and half a unit of the dtype of each value, which is what rounding alone may do. The proof compares value by value, so it finds less than that. 7 billion in float32 needs 60 GB of disk.

    python benchmarks/merge_faults.py [--sizes 0.1 7] [--dtypes bfloat16 float32] [--folder FOLDER] [--output benchmarks/results/merge_faults.md]
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import merge_contestants
import report
import torch
from merge import environment
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES = {"0.1": (768, 2048, 12, 12), "7": merge_contestants.SIZES["7"]}
Q, V, OUT, UP = ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight")
Q_BIAS, V_BIAS, K_BIAS = ("self_attn.q_proj.bias", "self_attn.v_proj.bias", "self_attn.k_proj.bias")
ADAPTED = (Q, V, Q_BIAS, V_BIAS)
ADAPTER, OTHER, DOUBLED = "qv", "another", "double_alpha"  # the files of a merge with half of the doubled alpha


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--folder", type=Path, help="where to build and write; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=report.RESULTS / "merge_faults.md")
    options = parser.parse_args()
    where, parts, figures = report.machine(), [], {}
    for size in options.sizes:
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                found = figures[f"{size} {dtype}"] = measure(Path(name), size, dtype)
            parts += [f"**{size} billion parameters, {dtype}**. {summarize(found)}", table(found)]
            report.write(options.output, "Faults that the proof of a merge finds", parts, figures, where)
    missed = [name for name, found in figures.items() if not found["all_found"]]
    if missed:
        sys.exit(f"not as planted: {', '.join(missed)}")


def measure(folder: Path, size: str, dtype: str) -> dict[str, Any]:
    """What the proof says of the sound merge and of each fault."""
    shape = SHAPES[size]
    merge_contestants.build(folder, shape, dtype, biases=True)
    write_other_adapters(folder, shape)
    command = [
        sys.executable, "-m", "peftrun", "action=merge", "model=pretrained", f"model.name_or_path={folder / 'base'}",
        "device=cpu", f"adapter={folder / ADAPTER}", f"action.output_dir={folder / 'merged'}", "action.num_eval_rows=0",
        f"hydra.run.dir={folder / 'run'}",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment(folder), stdout=subprocess.DEVNULL)
    record = json.loads((folder / "run" / "record.json").read_text())
    out: dict[str, Any] = {"merge_seconds": time.perf_counter() - started, "sound": record["merge"]}
    out["half of alpha"] = prove(folder, DOUBLED, dtype)
    out["a file cut short"] = prove_cut(folder, dtype)
    out["planted"] = plant(folder)
    out["together"] = prove(folder, ADAPTER, dtype)
    planted = {tensor for tensors in out["planted"].values() for tensor in tensors}
    adapted = {f"model.layers.{layer}.{key}" for layer in range(shape[2]) for key in ADAPTED}
    out["all_found"] = (
        named_tensors(out["together"]) == planted
        and named_tensors(out["half of alpha"]) == adapted
        and "truncated" in out["a file cut short"]["error"]
    )
    return out


def write_other_adapters(folder: Path, shape: tuple[int, int, int, int]) -> None:
    """The same adapter with twice its alpha, and other weights for the q and v of layer 1."""
    shutil.copytree(folder / ADAPTER, folder / DOUBLED)
    file = folder / DOUBLED / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    layer = {f"model.layers.1.{key}": (shape[0],) * (2 if key.endswith("weight") else 1) for key in ADAPTED}
    merge_contestants.write_adapter(folder / OTHER, merge_contestants.TARGETS[ADAPTER], [layer], biases=True)


def plant(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Changes the merged files, a layer a fault. Returns by fault the tensors that are wrong now, with their figures; see `compare`."""

    def base(layer: int, key: str) -> dict[str, Tensor]:
        return {key: load_layer(folder / "base", layer)[key]}

    swapped = {layer: load_layer(folder / "merged", layer)[Q] for layer in (6, 7)}
    faults: dict[str, tuple[int, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
        "a shard of another adapter": (1, lambda _: merge_other(folder)),
        "a tensor left unmerged": (2, lambda _: base(2, Q)),
        "a tensor scaled by 1.1": (3, lambda merged: {V: merged[V] * 1.1}),
        "a tensor of the base scaled by 1.1": (4, lambda merged: {OUT: merged[OUT] * 1.1}),
        "one value off by a unit": (5, lambda merged: {UP: move_one_value(merged[UP])}),
        "two tensors swapped": (6, lambda _: {Q: swapped[7]}),
        "two tensors swapped, the other": (7, lambda _: {Q: swapped[6]}),
        "a trained bias left out": (8, lambda _: base(8, Q_BIAS)),
        "a bias of the base dropped": (9, lambda merged: {K_BIAS: torch.zeros_like(merged[K_BIAS])}),
    }
    planted = {}
    for fault, (layer, change) in faults.items():
        merged, plain = load_layer(folder / "merged", layer), load_layer(folder / "base", layer)
        changed = change(merged)
        prefix = f"model.layers.{layer}."
        planted[fault] = {f"{prefix}{key}": compare(value, merged[key], plain[key]) for key, value in changed.items()}
        tensors = {f"{prefix}{key}": value.contiguous() for key, value in (merged | changed).items()}
        save_file(tensors, find_shard(folder / "merged", layer), {"format": "pt"})
    return planted


def compare(written: Tensor, right: Tensor, base: Tensor) -> list[float]:
    """Norms over a tensor: its error, the adapter's effect, and half a unit of the dtype, which rounding alone may move each value."""
    half_unit = torch.finfo(right.dtype).eps / 2
    written, right, base = written.float(), right.float(), base.float()
    return [float((written - right).norm()), float((right - base).norm()), half_unit * float(right.norm())]


def merge_other(folder: Path) -> dict[str, Tensor]:
    """What layer 1 would be with the other adapter: W + s·B·A and the bias with B's, computed in float32 and rounded once."""
    lora, base = load_file(folder / OTHER / "adapter_model.safetensors"), load_layer(folder / "base", 1)
    out = {}
    for key in ADAPTED:
        layer, kind = key.rsplit(".", 1)
        path = f"base_model.model.model.layers.1.{layer}"
        change = (
            lora[f"{path}.lora_B.bias"]
            if kind == "bias"
            else lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"]
        )
        out[key] = (base[key].float() + 2 * change).to(base[key].dtype)
    return out


def move_one_value(values: Tensor) -> Tensor:
    """The next number of the dtype in one place."""
    out = values.clone()
    out.view(-1).view(torch.int16 if out.itemsize == 2 else torch.int32)[7] += 1
    return out


def find_shard(model: Path, layer: int) -> Path:
    """The file of a layer."""
    places = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    return model / places[f"model.layers.{layer}.{Q}"]


def load_layer(model: Path, layer: int) -> dict[str, Tensor]:
    """Tensors of a layer by their names within it."""
    return {
        key.removeprefix(f"model.layers.{layer}."): value for key, value in load_file(find_shard(model, layer)).items()
    }


def prove(folder: Path, adapter: str, dtype: str) -> dict[str, Any]:
    """What the proof says of the files in `merged`, its seconds and peak memory, in a process of its own."""
    command = [sys.executable, __file__, "prove", str(folder), adapter, dtype]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, env=environment(folder), stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}


def prove_cut(folder: Path, dtype: str) -> dict[str, Any]:
    """The proof of the files when the last bytes of one are missing; afterwards they are back."""
    file = find_shard(folder / "merged", 3)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size - 64)
        tail = opened.read()
        opened.truncate(size - 64)
        found = prove(folder, ADAPTER, dtype)
        found["error"] = found["error"].replace(f"{folder}/", "")
        opened.seek(size - 64)
        opened.write(tail)
    return found


def prove_here(folder: Path, adapter: str, dtype: str) -> dict[str, Any]:
    """The same in this process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the very proof that the tests hold
    from merge_cases import model_spec, proved

    from peftrun.adapters import meta_model
    from peftrun.artifacts import adapter_folder
    from peftrun.errors import PeftrunError

    base, ref = folder / "base", adapter_folder.resolve_adapter(str(folder / adapter))
    out: dict[str, Any] = {"error": "", "wrong": []}
    try:
        net = meta_model.build_on_meta(base, model_spec(base), ref)
        out["figures"] = proved(net, base, folder / adapter, folder / "merged", dtype)
    except PeftrunError as error:
        out |= {"error": str(error), "wrong": getattr(error, "facts", {}).get("merge", {}).get("wrong", [])}
    return out | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def named_tensors(found: dict[str, Any]) -> set[str]:
    """Tensors that the proof names; a layer stands for the weight of which it is the output."""
    tensors = {line.split(maxsplit=1)[0].rstrip(",") for line in found["wrong"] if " answers otherwise " not in line}
    layers = {line.split(maxsplit=1)[0] for line in found["wrong"] if " answers otherwise " in line}
    return tensors | {f"{one}.weight" for one in layers if not any(tensor.startswith(f"{one}.") for tensor in tensors)}


def summarize(found: dict[str, Any]) -> str:
    """The sound merge, and the faults that concern no single tensor."""
    sound, halved = found["sound"], len(named_tensors(found["half of alpha"]))
    return (
        f"Sound: {sound['tensors']} tensors right, merged and proved in {found['merge_seconds']:.0f} s; error of the logits "
        f"{sound['max_logit_difference']:.2g}, {sound['share_of_effect']:.2%} of the adapter's effect of {sound['effect']:.3g}. "
        f'Half of alpha: {halved} tensors named. A file cut short: "{found["a file cut short"]["error"]}". All other faults together: '
        f"{len(found['together']['wrong'])} lines, {'each planted tensor and no other' if found['all_found'] else 'NOT AS PLANTED'}; "
        f"{found['together']['seconds']:.0f} s, {found['together']['peak_mib']} MiB."
    )


def table(found: dict[str, Any]) -> str:
    """A row for each planted tensor."""
    named = named_tensors(found["together"])
    rows = [
        [fault, f"`{tensor}`", *(f"{value:.3g}" for value in figures), "yes" if tensor in named else "NO"]
        for fault, tensors in found["planted"].items()
        for tensor, figures in tensors.items()
    ]
    return report.table(
        ["fault", "tensor", "error", "effect of the adapter", "half a unit of each value", "named"], rows
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["prove"]:
        print(json.dumps(prove_here(Path(sys.argv[2]), *sys.argv[3:])))
    else:
        main()

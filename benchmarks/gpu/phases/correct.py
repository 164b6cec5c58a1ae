"""Does it compute on the GPU what it computes on a CPU? Each knob against the run without it, each way to train reloaded with its proof."""

import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import equality, runs
from benchmarks.gpu.context import DEVICE, PATIENCE, WORK, Case, need_compiler, need_gpu, need_package
from benchmarks.gpu.inputs import get_gpt2, write_pairs
from benchmarks.gpu.processes import execute
from benchmarks.gpu.runs import choose_inputs, choose_training, run

SECONDS = 300
KNOBS: dict[str, list[str]] = {  # each against the same run without it, in float32
    "gradient_checkpointing": ["trainer.gradient_checkpointing=true"],
    "padding_free": ["trainer.padding_free=true"],
    "liger": ["trainer.use_liger_kernel=true"],
    "fused_adamw": ["trainer.optim=adamw_torch_fused"],
    "activation_offloading": ["trainer.activation_offloading=true"],
    "nondeterministic": ["device.deterministic=false"],
    "eager_attention": ["model.attn_implementation=eager"],
    "flex_attention": ["model.attn_implementation=flex_attention"],
    "torch_compile": ["trainer.torch_compile=true"],
}
FEW_STEPS = {"adalora": ["lora.tinit=1", "lora.tfinal=1"]}  # what a method asks of a training of few steps
RUNS: dict[str, list[str]] = {  # trained, finite, falling, reloaded
    "packing": ["trainer.packing=true"],
    "accumulation": ["trainer.gradient_accumulation_steps=2"],
    "validation": ["trainer.eval_strategy=steps", "trainer.eval_steps=4", "task.data.num_validation_rows=8", "trainer.save_strategy=steps", "trainer.save_steps=4",
                   "trainer.load_best_model_at_end=true"],
    "dora": ["lora=dora"],
    "pissa": ["lora=pissa"],
    "eva": ["lora=eva"],
    "ia3": ["lora=ia3"],
    "adalora": ["lora=adalora", *FEW_STEPS["adalora"]],
    "prompt_tuning": ["lora=prompt_tuning"],
    "neftune_dropout": ["trainer.neftune_noise_alpha=5", "lora.lora_dropout=0.1"],
    "full_fine_tuning": ["lora=none", "trainer.learning_rate=1e-3"],
    "dpo": ["task=dpo", "task.data.source=file", "task.data.package=null", "task.messages_column=null", 'task.prompt_template="{prompt}"', "task.chosen_column=better",
            "task.rejected_column=worse", "task.max_length=64"],
}  # fmt: skip
COMPILED = {"torch_compile": 90.0, "flex_attention": 60.0}  # in processes of their own: a compiler may take one along
GPU_ONLY = ("float16", "liger", "activation_offloading")  # peftrun refuses them on a CPU


def list_cases() -> dict[str, Case]:
    """Name → case; compiled ones last."""
    long = {"kill_and_resume": 75.0, **COMPILED}
    plain = [*_cases(), *(name for name in KNOBS if name not in COMPILED), *RUNS]
    return {name: Case(long.get(name, 45.0), name in COMPILED) for name in (*plain, *COMPILED)}


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    if case in GPU_ONLY:
        need_gpu(case)
    if case in COMPILED:
        need_compiler(case)
    if case == "liger":
        need_package("liger_kernel", "pip install liger-kernel")
    if case in KNOBS:
        return compare_knob(case)
    return train_way(case) if case in RUNS else _cases()[case]()


def _cases() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "cpu_and_gpu": compare_with_cpu,
        "same_seed": repeat_seed,
        "same_seed_bfloat16": lambda: repeat_seed("bfloat16"),
        "kill_and_resume": kill_and_resume,
        "bfloat16": compare_bfloat16,
        "float16": train_float16,
        "shared_base": equality.compare_joint_cells,
        "shared_base_bfloat16": lambda: equality.compare_joint_cells("bfloat16"),
        "conv1d": train_conv1d,
        "generate_mixed": equality.compare_mixed_answers,
        "cpu_adapter_on_gpu": use_cpu_adapter,
        "replay": replay,
        "plan": plan,
        "offload": evaluate_offloaded,
    }


def train_on_cpu() -> Path:
    """Folder of the reference's training, on the CPU."""
    return runs.run_once("cpu", *choose_training(device="cpu"))


def compare_with_cpu() -> dict[str, Any]:
    """Trained tensors within 1e-2 of their norm after eight steps."""
    reference, other = runs.run_reference(), train_on_cpu()
    distance, losses = runs.compare_runs(reference, other), runs.read_losses(reference)
    apart = runs.compare_losses(losses, runs.read_losses(other))
    return {"ok": distance < 1e-2, "tensors_apart": distance, "losses_apart": apart, "loss_last": losses[-1]}


def repeat_seed(dtype: str = "float32") -> dict[str, Any]:
    """The same seed twice: the same bytes?"""
    one, two = (run(*choose_training(dtype)).out_dir for _ in range(2))
    figures = {"tensors_apart": runs.compare_runs(one, two), "not_deterministic": runs.read_nondeterministic(one)}
    return {"ok": runs.hash_adapter(one) == runs.hash_adapter(two), **figures}


def kill_and_resume() -> dict[str, Any]:
    """Killed after step 7 of 12 with a checkpoint at 4 and continued, against a run that nobody killed."""
    figures: dict[str, Any] = {"ok": True}
    for dtype in ("float32", "bfloat16"):
        overrides = [*choose_training(dtype, steps=12), "trainer.save_strategy=steps", "trainer.save_steps=4"]
        whole, killed = run(*overrides, name="whole").out_dir, runs.new_folder("killed")
        told = execute(
            [sys.executable, "-m", "benchmarks.gpu.killed_run", "7", killed, *overrides], 40 * PATIENCE, folder=WORK
        )
        if told["code"] != -signal.SIGKILL:
            raise RuntimeError(f"the run to be killed ended with {told['code']}: {told['text'][-300:]}")
        again = run(*overrides, f"action.resume={killed}", name="again")
        same = runs.hash_adapter(whole) == runs.hash_adapter(again.out_dir)
        figures["ok"] &= same
        figures |= {f"{dtype}_identical": same, f"{dtype}_apart": runs.compare_runs(whole, again.out_dir)}
        figures["resumed_from"] = Path(str(again.facts.get("resumed_from"))).name
    return figures


def compare_bfloat16() -> dict[str, Any]:
    """Trained in bfloat16 and reloaded; distance of its losses from float32's."""
    folder = run(*choose_training("bfloat16")).out_dir
    apart = runs.compare_losses(runs.read_losses(folder), runs.read_losses(runs.run_reference()))
    return runs.check_losses(folder) | {"losses_apart_from_float32": apart} | runs.reload(folder, "bfloat16")


def train_float16() -> dict[str, Any]:
    """Trained in float16 and reloaded."""
    folder = run(*choose_training("float16")).out_dir
    return runs.check_losses(folder) | runs.reload(folder, "float16")


def train_conv1d() -> dict[str, Any]:
    """GPT-2, whose layers are Conv1D: trained, reloaded, merged."""
    folder = run(*choose_training(folder=get_gpt2())).out_dir
    figures = runs.check_losses(folder) | runs.reload(folder, "float32", f"model.name_or_path={get_gpt2()}")
    run(*choose_inputs(folder=get_gpt2()), "action=merge", f"adapter={folder}", name="merged")
    return figures | {"merged": "proved"}


def use_cpu_adapter() -> dict[str, Any]:
    """Trained on the CPU; reloaded, evaluated and merged on the GPU."""
    folder = train_on_cpu()
    done = run(*choose_inputs(), "action=reload", f"adapter={folder}")
    run(*choose_inputs(), "action=merge", f"adapter={folder}", name="merged")
    return compare_evaluation("cpu", folder, done)


def compare_evaluation(where: str, folder: Path, done: Any) -> dict[str, Any]:
    """Loss on the evaluation rows: recorded by the training, and now; within 1e-3."""
    before = runs.read_record(folder)["metrics"]["after"]["loss"]
    loss = (done.metrics.get("after") or done.metrics).get("loss", math.nan)
    return {"ok": abs(loss - before) <= 1e-3, "evaluation_loss": loss, f"evaluation_loss_{where}": before}


def replay() -> dict[str, Any]:
    """The reference run again, and compared with its record."""
    return summarize(run("action=replay", f"run={runs.run_reference()}", name="replay"))


def plan() -> dict[str, Any]:
    """The estimate of memory and time."""
    return summarize(run(*choose_training(), "action=plan", name="plan"))


def summarize(done: Any) -> dict[str, Any]:
    """The run's summary in a line."""
    return {"summary": "; ".join(f"{key}: {value}" for key, value in done.summary)[:200]}


def evaluate_offloaded() -> dict[str, Any]:
    """A base model of which only a part may be on the GPU."""
    memory = "{0: 8MiB, cpu: 8GiB}" if DEVICE == "cuda" else "{cpu: 8GiB}"
    inputs = [override for override in choose_inputs() if not override.startswith("device")]
    inputs += ["device=offload", "device.dtype=float32", f"++device.max_memory={memory}"]
    inputs += [] if DEVICE == "cuda" else ["device.type=cpu"]
    done = run(*inputs, "action=evaluate", f"adapter={runs.run_reference()}", name="offload")
    return compare_evaluation("whole", runs.run_reference(), done) | {"device": done.facts.get("device", "")[-60:]}


def compare_knob(name: str) -> dict[str, Any]:
    """The run with the knob against that without: losses within 1e-2."""
    done = run(*choose_training(), *KNOBS[name], name=name)
    apart = runs.compare_losses(runs.read_losses(done.out_dir), runs.read_losses(runs.run_reference()))
    distance = runs.compare_runs(done.out_dir, runs.run_reference())
    return {"ok": apart < 1e-2, "tensors_apart": distance, "losses_apart": apart, "wall_s": done.facts["wall"]}


def train_way(name: str) -> dict[str, Any]:
    """Another method, objective or way to train: losses fall, and the adapter reloads with its proof."""
    overrides, training = RUNS[name], choose_training()
    if overrides[0].startswith("task="):
        rows = [f"task.data.path={write_pairs()}", "task.data.num_test_rows=8"]
        training = [override for override in training if not override.startswith("task=")]
        overrides = [*overrides, *rows]
    folder = run(*training, *overrides, name=name).out_dir
    return runs.check_losses(folder) | ({} if name == "full_fine_tuning" else runs.reload(folder))

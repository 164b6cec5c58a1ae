"""A training run of one contestant: peftrun, transformers.Trainer + PEFT or TRL, on the same rows, timed in the same way."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import runs
from benchmarks.gpu.context import DEVICE, HALF, TINY, need_compiler, need_gpu, need_package
from benchmarks.gpu.flops import compute_mfu
from benchmarks.gpu.inputs import write_texts

STEPS, WARM_UP = (5, 2) if TINY else (10, 3)  # steps of a round; the first do not count
RANK = 16
# Contestants that are peftrun: what is typed. All others are scripts of `train_script`.
OVERRIDES: dict[str, list[str]] = {
    "peftrun": [],
    "peftrun_liger": ["trainer.use_liger_kernel=true"],
    "peftrun_nondeterministic": ["device.deterministic=false"],
    "peftrun_checkpointing": ["trainer.gradient_checkpointing=true"],
    "peftrun_compile": ["trainer.torch_compile=true"],
    "peftrun_padding_free": ["trainer.padding_free=true"],
    "peftrun_packed": ["trainer.packing=true"],
    "peftrun_nf4": ["model.quantization=nf4", "trainer.gradient_checkpointing=true"],
}


@dataclass
class Rows:
    """Token counts of the texts, cut at `longest`; `batch` of them a step."""

    name: str
    lengths: list[int] = field(repr=False)
    longest: int
    batch: int

    @classmethod
    def full(cls, tokens: int, batch: int) -> "Rows":
        """Rows of one length: no padding."""
        return cls(f"{tokens}x{batch}", [tokens] * (batch * STEPS + 4), tokens, batch)

    def count_attended(self) -> float:
        """Tokens of the row that a token is in, on average: what attention costs a token."""
        return sum(length**2 for length in self.lengths) / sum(self.lengths)


def choose_run(folder: Path, rows: Rows, dtype: str = HALF, steps: int = STEPS) -> list[str]:
    """Overrides of every contestant: LoRA on every linear layer, every token learned, nothing saved or evaluated before."""
    return [
        *runs.choose_base(folder, dtype), "task=plain_text", f"task.data.path={write_texts(rows.name, rows.lengths)}", "task.data.num_test_rows=1",
        f"task.max_length={rows.longest}", f"lora.r={RANK}", "trainer.learning_rate=2e-4", "trainer.warmup_steps=0", f"trainer.max_steps={steps}",
        f"trainer.per_device_train_batch_size={rows.batch}", "trainer.per_device_eval_batch_size=1", "trainer.logging_steps=1",
        "trainer.save_strategy=no", "action.evaluate_before=false", "action.num_samples=0",
    ]  # fmt: skip


def check_needs(name: str) -> None:
    """Raises Missing if this machine cannot run the contestant."""
    if name.endswith("liger"):
        need_gpu("liger")
        need_package("liger_kernel", "pip install liger-kernel")
    if name.endswith("compile"):
        need_compiler("torch_compile")
    if name.endswith("nf4"):
        need_package("bitsandbytes", "pip install 'peftrun[qlora]'")


def train(name: str, folder: Path, overrides: list[str]) -> Path:
    """Trains as the contestant does; the folder of its adapter."""
    check_needs(name)
    if name in OVERRIDES:
        return runs.run(*overrides, *OVERRIDES[name], name=name).out_dir / "adapter"
    return train_script(name, folder, overrides)


def train_script(name: str, base: Path, overrides: list[str]) -> Path:
    """What a user writes by hand; rows and their order are peftrun's. The folder of its adapter."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import peftrun
    from benchmarks import contestants
    from peftrun.tasks import causal_lm

    spec, tokenizer, folder = peftrun.load(*overrides), AutoTokenizer.from_pretrained(base), runs.new_folder(name)
    dtype = next(text.partition("=")[2] for text in overrides if text.startswith("device.dtype="))
    rows = causal_lm.load_rows(spec.task, tokenizer)
    arguments: dict[str, Any] = {
        "logging_steps": spec.trainer.logging_steps,
        "save_strategy": "no",
        "report_to": "none",
    }
    if name.startswith("trl"):
        arguments |= {} if dtype == "bfloat16" else {"bf16": False}  # TRL's default is bfloat16 autocast
        arguments |= {"model_init_kwargs": {"dtype": dtype}} if name == "trl_bf16_base" else {}
        arguments |= {"packing": True} if name == "trl_packed" else {}
        net = contestants.train_with_trl(
            spec, base, tokenizer, rows, folder, max_length=spec.task.max_length, **arguments
        )
    else:
        arguments |= {
            "bf16": dtype == "bfloat16",
            "gradient_checkpointing": name in ("trainer_checkpointing", "trainer_nf4"),
        }
        if name == "trainer_nf4":
            loaded = load_nf4(base, dtype)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(DEVICE)
        net = contestants.train_with_trainer(spec, loaded, tokenizer, rows, folder, **arguments)
    net.save_pretrained(folder / "adapter")
    return folder / "adapter"


def load_nf4(base: Path, dtype: str) -> Any:
    """The base model as PEFT's documentation quantizes it for QLoRA."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=getattr(torch, dtype)
    )  # fmt: skip
    net = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=how, dtype=getattr(torch, dtype), device_map={"": DEVICE}
    )
    return prepare_model_for_kbit_training(net)


def measure(name: str, folder: Path, rows: Rows) -> dict[str, Any]:
    """Tokens a second over the steps that count, MFU, memory, losses."""
    overrides, begin = choose_run(folder, rows), time.time()
    with watch_training(count_pads=len(set(rows.lengths)) > 1) as watch:
        train(name, folder, overrides)
    each = watch.list_steps()
    seconds, tokens = each[WARM_UP:], watch.count_tokens() or [rows.batch * rows.longest] * len(each)
    rate = sum(tokens[WARM_UP:]) / sum(seconds)
    computed = watch.count_computed() or tokens
    return {
        "tokens_per_second": rate, "step_seconds": statistics.median(seconds), "step_least": min(seconds), "step_most": max(seconds),
        "first_step_seconds": each[0], "setup_seconds": watch.begun - begin, "each_step": [round(one, 4) for one in each],
        "losses": watch.losses, "padding": 1 - sum(tokens) / sum(computed), "peak_gib": watch.peak, "reserved_gib": watch.reserved,
        "base_dtype": watch.dtype, "attention": watch.attention, "batches": watch.seen.hexdigest()[:12], "checkpointing": watch.checkpointing,
        "rows": rows.batch, "longest": rows.longest,
    } | compute_mfu(folder, RANK, rows.count_attended(), rate)  # fmt: skip


@contextmanager
def watch_training(count_pads: bool = False) -> Iterator[Any]:
    """A TrainingWatch in every Trainer that is built inside."""
    from benchmarks.gpu.watch import TrainingWatch

    with call_back(TrainingWatch(count_pads)) as watch:
        yield watch


@contextmanager
def call_back(callback: Any) -> Iterator[Any]:
    """A callback in every Trainer that is built inside, also in peftrun's."""
    from transformers.trainer import DEFAULT_CALLBACKS

    DEFAULT_CALLBACKS.append(callback)
    try:
        yield callback
    finally:
        DEFAULT_CALLBACKS.remove(callback)

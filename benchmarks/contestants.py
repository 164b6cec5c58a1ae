"""The contestants of train_step.py, each run in a process of its own; prints one line of JSON."""

import dataclasses
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.trainer import DEFAULT_CALLBACKS

from peftrun.composition.spec import build_spec
from peftrun.config import paths
from peftrun.config.schema.run import RunSpec
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.tasks import causal_lm
from peftrun.tasks.rows import Rows


class Stamps(TrainerCallback):
    """When training began and when each step ended; a digest of every batch that entered the model."""

    def __init__(self) -> None:
        self.begun, self.ended, self.seen = 0.0, list[float](), hashlib.sha256()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts to watch the embeddings: every contestant's batches go through them once."""
        self.hook = kwargs["model"].get_input_embeddings().register_forward_pre_hook(self._note)
        self.begun = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stamps the step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended.append(time.time())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops watching: what comes after is no training."""
        self.hook.remove()

    def _note(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.seen.update(arguments[0].cpu().numpy().tobytes())

    def list_steps(self) -> list[float]:
        """Seconds of each step."""
        return [end - begin for begin, end in zip([self.begun, *self.ended], self.ended, strict=False)]


def main(name: str, base: Path | None, task: str, steps: int, warm_up: int) -> None:
    """Trains as `name` does, evaluates, reports."""
    spec = _spec(task, steps)
    if base is None:
        base = base_models.load_base(spec.model, device.resolve_device(spec.device)).folder
        return print(json.dumps({"base": str(base)}))
    stamps = Stamps()
    DEFAULT_CALLBACKS.append(stamps)  # every Trainer of this process, also the one that peftrun builds
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = causal_lm.load_rows(spec.task, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        net = CONTESTANTS[name](spec, base, tokenizer, rows, Path(folder))
    peak = _peak_mib()
    started = time.perf_counter()
    held_out = causal_lm.evaluate(net, tokenizer, rows.held_out, spec.trainer.per_device_eval_batch_size, spec.task)
    found = _figures(stamps, warm_up) | {
        "evaluate_seconds": time.perf_counter() - started,
        "peak_mib": peak,
        "peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        "held_out": held_out,
        "dtype": str(net.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
        "device": net.device.type,
    }
    return print(f"\n{json.dumps(found)}")


def _spec(task: str, steps: int) -> RunSpec:
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        return build_spec(compose("config", overrides=[f"task={task}", f"trainer.max_steps={steps}"]))


def _peftrun(spec: RunSpec, base: Path, tokenizer: Any, rows: Rows, folder: Path) -> Any:
    from peftrun.adapters import attach
    from peftrun.training import cpu_attention, fit

    place = device.resolve_device(spec.device)
    loaded = base_models.load_base(spec.model, place)
    net = attach.attach_adapter(loaded, spec.lora, spec.seed)
    lesson = fit.TrainingData(
        rows.build_training_rows(), [row.where for row in rows.train], tokenizer, spec.seed, spec.task.max_length
    )
    eager = cpu_attention.is_eager_faster(spec.model, spec.task, spec.trainer, place)
    with cpu_attention.use_eager_attention(loaded.model, eager):
        fit.fit(net, lesson, spec.trainer, place, folder, checkpoint=None)
    return net


def _trainer(spec: RunSpec, base: Path, tokenizer: Any, rows: Rows, folder: Path, **loading: Any) -> Any:
    return train_with_trainer(spec, AutoModelForCausalLM.from_pretrained(base, **loading), tokenizer, rows, folder)


def train_with_trainer(spec: RunSpec, base: Any, tokenizer: Any, rows: Rows, folder: Path, **arguments: Any) -> Any:
    """The PEFT model that transformers.Trainer made of a loaded base model, with the settings of `spec` and `arguments`."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    set_seed(spec.seed)
    net = get_peft_model(base, _lora(spec))
    loop = Trainer(
        model=net,
        args=TrainingArguments(**_same_for_all(spec, folder) | arguments),
        train_dataset=Dataset.from_list(rows.build_training_rows()),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    loop.train()
    return net


def _trainer_bf16(spec: RunSpec, base: Path, tokenizer: Any, rows: Rows, folder: Path) -> Any:
    return _trainer(spec, base, tokenizer, rows, folder, dtype=torch.bfloat16)


def _trl(spec: RunSpec, base: Path, tokenizer: Any, rows: Rows, folder: Path) -> Any:
    # TRL's default is bf16 autocast; a CPU user who wants plain float32, as Trainer gives, turns it off.
    plain = {} if torch.cuda.is_available() else {"bf16": False}
    return train_with_trl(spec, base, tokenizer, rows, folder, **plain)


def train_with_trl(spec: RunSpec, base: Path, tokenizer: Any, rows: Rows, folder: Path, **arguments: Any) -> Any:
    """The PEFT model that trl.SFTTrainer made of the base model's files, with the settings of `spec` and `arguments`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    set_seed(spec.seed)
    loop = SFTTrainer(
        model=str(base),
        args=SFTConfig(**_same_for_all(spec, folder) | arguments),
        train_dataset=Dataset.from_list(rows.build_training_rows()),
        processing_class=tokenizer,
        peft_config=_lora(spec),
    )
    loop.train()
    return loop.model


def _same_for_all(spec: RunSpec, folder: Path) -> dict[str, Any]:
    names = ("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size")
    same = {name: getattr(spec.trainer, name) for name in names}
    place = {"output_dir": str(folder), "use_cpu": not torch.cuda.is_available()}
    return same | place | {"seed": spec.seed, "data_seed": spec.seed, "disable_tqdm": True}


def _lora(spec: RunSpec) -> Any:
    from peft import LoraConfig

    chosen = {key: value for key, value in dataclasses.asdict(spec.lora).items() if value is not None}
    chosen = {key: value for key, value in chosen.items() if key in LoraConfig.__dataclass_fields__}
    return LoraConfig(**chosen, task_type="CAUSAL_LM")


def _figures(stamps: Stamps, warm_up: int) -> dict[str, Any]:
    each = stamps.list_steps()
    counted = each[warm_up:]
    return {
        "step_seconds": sum(counted) / len(counted),
        "each_step_seconds": [round(seconds, 4) for seconds in each],
        "setup_seconds": stamps.begun - float(os.environ["BENCHMARK_STARTED"]),
        "batches": stamps.seen.hexdigest(),
    }


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


CONTESTANTS = {
    "peftrun": _peftrun,
    "trainer": _trainer,
    "trainer_bf16": _trainer_bf16,
    "trl": _trl,
    "trl_autocast": train_with_trl,
}

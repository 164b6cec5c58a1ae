"""Checks and measures peftrun on a machine with one GPU. README.md in this folder says how to get it there.

    python benchmarks/gpu/check.py [--phases env,correct,…] [--budget SECONDS] [--limits train8b=180,…] [--out FOLDER] [--tiny]

Run in the root of a checkout of peftrun. Every case runs in a process apart from this one, with a limit of its own: one that
fails, hangs or takes the GPU down leaves the others alone, and its error is printed. After each phase a table is printed; all
figures are in FOLDER/results.json, which is written anew after every case, and everything that was printed in FOLDER/log.txt.

    env       versions, the GPU, its two ceilings; training, reload proof, merge proof, answers
    correct   CPU against GPU, same seed twice, kill and resume, and each knob against the run without it
    train1b   tokens a second, MFU, memory, loss of each contestant on 1.2 B parameters
    train8b   the same on 7.4 B
    sweep     8 and 32 cells on one base against one after another
    merge     of the large base, against PEFT and a plain copy
    serve     mixed batches against one adapter at a time
    tests     the project's own tests of actions, training and sweeps
    methods   (not by default) every option of conf/lora/, trained for two steps
    profile   (not by default) which GPU kernels a training step is made of

--tiny: the same on a CPU with models of two small layers, to test this script.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import math
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
HERE = Path(__file__).resolve()
DEFAULT = ("env", "correct", "train1b", "train8b", "sweep", "merge", "serve", "tests")
LIMITS = {
    "env": 120,
    "correct": 200,
    "train1b": 200,
    "train8b": 300,
    "sweep": 220,
    "merge": 240,
    "serve": 120,
    "tests": 165,
    "methods": 240,
    "profile": 90,
}  # seconds of a phase
GIB, MIB = 2**30, 2**20

# ------------------------------------------------------------------------------------------------------------------ parent


class Child:
    """A process that has imported everything, and does one case at a time as it is told."""

    def __init__(self, log: Any) -> None:
        read, write = os.pipe()
        self.answers, self.rest = read, b""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--child"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=(write,),
            env=os.environ | {"PEFTRUN_GPU_ANSWERS": str(write)}, process_group=0,
        )  # fmt: skip
        os.close(write)

    def do(self, case: str, limit: float) -> dict[str, Any]:
        """The case's figures, or its `error`; `over`: this process can do no more."""
        try:
            self.process.stdin.write(f"{case}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"its process ended before it began (exit code {self.process.wait()})", "over": True}
        until = time.monotonic() + limit
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.kill()
                return {"error": f"took longer than {limit:.0f} s", "over": True}
            piece = os.read(self.answers, 1 << 16)
            if not piece:
                return {"error": f"its process died (exit code {self.process.wait()})", "over": True}
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
            os.close(self.answers)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self.kill()


class Checker:
    """Runs phases within the budget, keeps the figures, prints the tables."""

    def __init__(self, options: Any, out: Path) -> None:
        self.options, self.out, self.began = options, out, time.monotonic()
        self.log = open(out / "log.txt", "ab")
        self.results: dict[str, Any] = {"phases": options.phases, "tiny": options.tiny}
        self.children: list[Child] = []

    def left(self) -> float:
        return self.options.budget - (time.monotonic() - self.began)

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.log.write(f"{text}\n".encode())
        self.log.flush()

    def keep(self) -> None:
        text = json.dumps(self.results, indent=1, default=str)
        (self.out / ".results.json").write_text(text)
        os.replace(self.out / ".results.json", self.out / "results.json")

    def child(self) -> Child:
        """One that waits already, or a new one; the next one begins to import."""
        found = self.children.pop() if self.children else Child(self.log)
        if self.left() > 60 and not (self.options.tiny and len(self.options.phases) == 1):
            self.children.append(Child(self.log))
        return found

    def phase(self, name: str) -> None:
        started, found = time.monotonic(), {}
        self.results[name] = found
        self.say(f"\n== {name} ({self.left():.0f} s left)")
        slow = 6 if self.options.tiny else 1  # a shared CPU
        limit = min(slow * LIMITS[name], self.left())
        at_work: Child | None = None
        cases = CASES[name](self.options)
        for case, (seconds, alone) in cases.items():
            left = min(limit - (time.monotonic() - started), self.left()) - 1
            if left < 5:
                found[case] = {"error": "not run: no time left"}
                continue
            if alone and at_work:
                at_work.end()
                at_work = None
            worker = at_work or self.child()
            self.say(f"-- {name}/{case}") if self.options.verbose else None
            begin = time.monotonic()
            told = worker.do(f"{name}/{case}", min(slow * seconds, left))
            told["took"] = round(time.monotonic() - begin, 1)
            over = told.pop("over", False)
            found[case] = told
            self.keep()
            if alone or over:
                worker.kill() if over else worker.end()
                at_work = None
            else:
                at_work = worker
        if at_work:
            at_work.end()
        self.say(TABLES.get(name, plain_table)(found))
        for case, told in found.items():
            if "error" in told:
                self.say(f"FAILED {name}/{case}: {told['error']}")
                self.say("".join(f"    {line}\n" for line in told.get("trace", [])[-8:]).rstrip()) if told.get(
                    "trace"
                ) else None
        self.keep()

    def close(self) -> None:
        for one in self.children:
            one.kill()
        self.keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(DEFAULT), type=lambda text: text.split(","))
    parser.add_argument("--budget", type=float, default=540, help="seconds of everything")
    parser.add_argument(
        "--limits", default="", help="seconds of some phases, in place of their own: train8b=180,sweep=120"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu_out"))
    parser.add_argument(
        "--work", type=Path, help="where bases and runs are written; default: a temporary folder, removed at the end"
    )
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to test this script")
    parser.add_argument(
        "--batch8",
        type=int,
        default=0,
        help="rows of a step on the large base; default: 2, or 1 below 100 GiB of GPU memory",
    )
    parser.add_argument("--only", default="", help="a regular expression: run those cases alone")
    parser.add_argument("--verbose", action="store_true", help="print each case as it begins")
    options = parser.parse_args()
    unknown = [name for name in options.phases if name not in CASES]
    if unknown:
        sys.exit(f"check.py: no such phase: {', '.join(unknown)}; there are {', '.join(CASES)}")
    LIMITS.update({name: float(value) for name, value in (one.split("=") for one in options.limits.split(",") if one)})
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = Path(options.work or tempfile.mkdtemp(prefix="gpu-check-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(work / "hf"), "PEFTRUN_CACHE": str(work / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "GPU_CHECK": json.dumps({"tiny": options.tiny, "work": str(work), "out": str(out), "root": str(ROOT), "batch8": options.batch8}),
    }  # fmt: skip
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    checker = Checker(options, out)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        for name in options.phases:
            if checker.left() < 10:
                checker.say(f"\n== {name}: not run, no time left")
                continue
            try:
                checker.phase(name)
            except Exception as error:
                checker.say(f"FAILED {name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    finally:
        checker.close()
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    checker.say(f"\n{time.monotonic() - checker.began:.0f} s; figures: {out / 'results.json'}")


def table(header: list[str], rows: list[list[Any]]) -> str:
    cells = [header, *[[short(one) for one in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return " ".join(str(value).split())


def plain_table(found: dict[str, Any]) -> str:
    """A line a case: whether it is as it should be, and its figures."""
    rows = []
    for case, told in found.items():
        figures = {key: value for key, value in told.items() if key not in ("took", "ok", "error", "trace", "seen")}
        state = "failed" if "error" in told else short(told.get("ok", True))
        rows.append(
            [
                case,
                state,
                f"{told.get('took', 0):.1f}",
                "; ".join(f"{key} {short(value)}" for key, value in figures.items())[:230],
            ]
        )
    return table(["case", "ok", "s", "figures"], rows)


def train_table(found: dict[str, Any]) -> str:
    rows = []
    for case, told in found.items():
        if "tokens_per_second" not in told:
            rows.append([case, *["-"] * 9, told.get("error", told.get("what", ""))[:60]])
            continue
        losses = told["losses"]
        rows.append([case, told["tokens_per_second"], told["step_seconds"], told["mfu_of_989"], told["mfu_of_measured"], told["peak_gib"],
                     told["setup_seconds"], f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{told['loss_apart']:.4f}", told["notes"]])  # fmt: skip
    return table(["contestant", "tokens/s", "s/step", "MFU/989", "MFU/measured", "peak GiB", "setup s", "loss 1", "loss last",
                  "max apart", "notes"], rows)  # fmt: skip


def columns_table(*names: str) -> Callable[[dict[str, Any]], str]:
    def made(found: dict[str, Any]) -> str:
        rows = [[case, *(told.get(name) for name in names), told.get("error", "")[:60]] for case, told in found.items()]
        return table(["case", *names, ""], rows)

    return made


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "train1b": train_table,
    "train8b": train_table,
    "sweep": columns_table(
        "cells", "makespan_s", "joint_step_s", "cell_step_s", "tokens_per_second", "mfu_of_989", "peak_gib", "note"
    ),
    "merge": columns_table("seconds", "peak_rss_gib", "peak_gpu_gib", "gb", "differing"),
    "serve": columns_table("seconds", "tokens", "tokens_per_second", "requests"),
}

# ------------------------------------------------------------------------------------------------------------------- child
# What follows runs in a child. Nothing heavy is imported above.

GIVEN: dict[str, Any] = json.loads(os.environ.get("GPU_CHECK", "{}"))
TINY: bool = GIVEN.get("tiny", False)
DEVICE = "cpu" if TINY else "cuda"
SLOW = 6 if TINY else 1  # a shared CPU takes longer
HALF = "float32" if TINY else "bfloat16"  # which many CPUs compute slowly
STEPS, LEFT_OUT = (5, 2) if TINY else (12, 4)
WORK = Path(GIVEN.get("work", "."))
OUT = Path(GIVEN.get("out", "."))


def child() -> None:
    """Imports, then does what standard input says until it ends."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent
    answers = os.fdopen(int(os.environ["PEFTRUN_GPU_ANSWERS"]), "w", buffering=1)
    os.chdir(WORK)
    begun = time.time()
    try:
        warm()
    except BaseException:  # each case then says by itself what is wrong
        traceback.print_exc()
    print(f"[imported in {time.time() - begun:.1f} s]", flush=True)
    for line in sys.stdin:
        phase, case = line.strip().split("/")
        print(f"\n######## {phase}/{case}", flush=True)
        told: dict[str, Any]
        try:
            told = FUNCTIONS[phase](case)
        except BaseException as error:
            traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            lines = [line for line in traceback.format_exc().strip().splitlines()[:-1] if line.strip(" ^~")]
            told = {"error": f"{type(error).__name__}: {text}"[:600], "trace": lines[-16:]}
            if "CUDA error" in text or "device-side assert" in text or isinstance(error, KeyboardInterrupt):
                told["over"] = True  # this process cannot compute on the GPU any more
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(told, default=str) + "\n")
        tidy()


def warm() -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    import peftrun  # noqa: F401
    from peftrun.runs import execute as run_executor

    run_executor.import_quietly("peftrun.actions.train")


def tidy() -> None:
    import gc

    gc.collect()
    with contextlib.suppress(Exception):
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_gpu() -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / GIB, 2) if DEVICE == "cuda" else None


# -------------------------------------------------------------------------------------------------- models, rows, runs


def tokenizer_folder() -> Path:
    """Of the embedded model: bundled, in the cache, or converted now from its package."""
    places = [ROOT / ".gpu" / "tokenizer", *Path.home().glob(".cache/peftrun/models/SmolLM2*")]
    found = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    if found is None:
        import peftrun
        from peftrun.models import base as base_models

        found = base_models.resolve_base_dir(peftrun.load().model)
    return found


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder())


SHAPES: dict[str, dict[str, Any]] = {
    "nano": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                 initializer_range=0.2),
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False),
}  # fmt: skip
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def base(name: str) -> Path:
    """A random Llama on disk, made when it is first asked for; in bfloat16 but for the smallest."""
    folder = WORK / "bases" / name
    if (folder / ".whole").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    words = tokenizer()
    shape = SHAPES[name] | (SMALL if TINY and name != "nano" else {})
    config = LlamaConfig(
        vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        net = LlamaForCausalLM(config).to(torch.float32 if name == "nano" else torch.bfloat16)
    net.save_pretrained(folder, max_shard_size="5GB")
    words.save_pretrained(folder)
    del net
    tidy()
    (folder / ".whole").touch()
    return folder


def gpt2() -> Path:
    folder = WORK / "bases" / "gpt2"
    if not (folder / ".whole").exists():
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        words = tokenizer()
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=49152, n_positions=256, n_embd=64, n_layer=2, n_head=4, eos_token_id=words.eos_token_id,
                            bos_token_id=words.eos_token_id)  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
        words.save_pretrained(folder)
        (folder / ".whole").touch()
    return folder


def text_rows(tokens: int, count: int) -> Path:
    """A file of texts that are each exactly so many tokens, the end token included."""
    file = WORK / f"texts-{tokens}-{count}.jsonl"
    if file.exists():
        return file
    words_of = tokenizer()
    draw = random.Random(0)
    words = sorted(word[1:] for word in words_of.get_vocab() if re.fullmatch("Ġ[a-z]{3,9}", word))
    words = [
        word
        for word in draw.sample(words, 600)
        if len(words_of(word)["input_ids"]) == 1 == len(words_of(" " + word)["input_ids"])
    ]
    weights = [1 / (place + 1) for place in range(len(words))]
    lines = []
    for _ in range(count):
        text = " ".join(draw.choices(words, weights, k=tokens - 1))
        found = len(words_of(text)["input_ids"])
        if found != tokens - 1:
            raise ValueError(f"a text of {tokens - 1} words makes {found} tokens")
        lines.append(json.dumps({"text": text}) + "\n")
    file.write_text("".join(lines))
    return file


def pairs() -> Path:
    file = WORK / "pairs.jsonl"
    if not file.exists():
        rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes", "better": "no" if n % 2 else "yes",
                 "worse": "yes" if n % 2 else "no"} for n in range(72)]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def on(folder: Path, dtype: str = "float32", device: str = "") -> list[str]:
    """Overrides: this base, on this device."""
    return ["model=pretrained", f"model.name_or_path={folder}", f"device={device or DEVICE}", f"device.dtype={dtype}"]


def small(dtype: str = "float32", device: str = "", steps: int = 8, folder: Path | None = None) -> list[str]:
    """Overrides: a training of seconds."""
    return [
        *on(folder or base("nano"), dtype, device), "task=instruction", f"task.data.path={pairs()}", "task.data.num_test_rows=8", "task.max_length=64",
        "trainer.learning_rate=5e-3", f"trainer.max_steps={steps}", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_strategy=no",
        "action.num_samples=1",
    ]  # fmt: skip


def using(dtype: str = "float32", folder: Path | None = None) -> list[str]:
    """The same base, task and device for another action."""
    return [one for one in small(dtype, folder=folder) if not one.startswith(("action.", "trainer."))]


def new(name: str) -> Path:
    """A folder that is not there yet."""
    (WORK / "runs").mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK / "runs")) / "run"


def run(*overrides: str, name: str = "run") -> Any:
    import peftrun

    begin = time.perf_counter()
    found = peftrun.run(*overrides, out_dir=new(name))
    synchronize()
    found.facts["wall"] = time.perf_counter() - begin
    return found


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]  # rows of validation have none


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def apart(one: Path, other: Path) -> float:
    """Largest relative distance of a tensor of two adapters."""
    a, b = weights(one), weights(other)
    if a.keys() != b.keys():
        raise ValueError("the adapters hold different tensors")
    return max(float((a[key].float() - b[key].float()).norm() / b[key].float().norm().clamp(min=1e-12)) for key in a)


def finite(folder: Path) -> dict[str, Any]:
    found = losses_of(folder)
    return {
        "ok": all(map(math.isfinite, found)) and found[-1] < found[0],
        "loss_first": found[0],
        "loss_last": found[-1],
    }


def execute(command: list[str], limit: float = 300, log: Path | None = None) -> dict[str, Any]:
    """Seconds, exit code, largest resident set and output of a process."""
    file = log or new("log").parent / "log.txt"
    told = file.with_suffix(".json")
    told.unlink(missing_ok=True)
    with open(file, "wb") as out:
        # A small process in between: what this one forks would count its memory as its own.
        between = [sys.executable, "-S", str(HERE), "--measured", str(told), f"{limit:.0f}", *map(str, command)]
        subprocess.run(between, cwd=WORK, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False)
    text = file.read_text(errors="replace")
    print(f"$ {' '.join(map(str, command))}\n{text[-6000:]}", flush=True)
    found = json.loads(told.read_text())
    told.unlink()
    return {**found, "text": text}


def measured(told: str, limit: float, command: list[str]) -> None:
    """Runs a command; its seconds, exit code and largest resident set in bytes go to a file."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)

    def stop(*_: Any) -> None:
        """As Ctrl-C, so that pytest tells what has failed so far; ten seconds later for good."""
        process.send_signal(signal.SIGINT)
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(10)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(limit))
    _, status, usage = os.wait4(process.pid, 0)
    signal.alarm(0)
    found = {
        "seconds": time.perf_counter() - begin,
        "code": os.waitstatus_to_exitcode(status),
        "rss": usage.ru_maxrss * 1024,
    }
    Path(told).write_text(json.dumps(found))


def cli(*overrides: str, limit: float = 300) -> dict[str, Any]:
    """`peftrun OVERRIDES` in a process of its own; what it printed."""
    found = execute([sys.executable, "-m", "peftrun", *overrides], limit)
    if found["code"]:
        raise RuntimeError(f"exit code {found['code']}: {' | '.join(found['text'].strip().splitlines()[-6:])}")
    return found


# ----------------------------------------------------------------------------------------------------------------- phase 1


def env(case: str) -> dict[str, Any]:
    return {"versions": env_versions, "gpu": env_gpu, "ceilings": env_ceilings, "train": env_train, "reload": env_reload, "merge": env_merge,
            "generate": env_generate, "bfloat16_default": env_default}[case]()  # fmt: skip


def env_versions() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import peftrun

    names = ["torch", "transformers", "peft", "trl", "accelerate", "datasets", "huggingface-hub", "hydra-core", "tokenizers", "safetensors", "numpy",
             "pyarrow", "triton", "liger-kernel", "flash-attn", "kernels", "bitsandbytes", "torchvision"]  # fmt: skip
    found = {"python": sys.version.split()[0]}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    told = execute([sys.executable, "-m", "peftrun", "--version"])
    where = Path(peftrun.__file__).parent.parent
    return {
        "ok": told["code"] == 0 and where == Path(GIVEN["root"]),
        "peftrun --version": " ".join(told["text"].split())[:40],
        "code_from_checkout": where == Path(GIVEN["root"]),
        **found,
    }


def env_gpu() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cores": os.cpu_count(), "disk_free_gib": round(shutil.disk_usage(WORK).free / GIB)}
    if DEVICE == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"name": card.name, "memory_gib": round(card.total_memory / GIB, 1), "capability": f"{card.major}.{card.minor}",
                  "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "bf16": torch.cuda.is_bf16_supported()}  # fmt: skip
        smi = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,memory.used,clocks.sm", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
        found["smi"] = smi.stdout.strip()
    found["cc"] = shutil.which("gcc") or shutil.which("cc")  # torch_compile and Triton need one
    return found


def env_ceilings() -> dict[str, Any]:
    """bfloat16 matrix product on random data, and copy within the GPU's memory."""
    import torch

    size = 256 if TINY else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = median_seconds(lambda: a @ b, 3 if TINY else 20)
    big = torch.empty((1 << 20) if TINY else (1 << 32), dtype=torch.uint8, device=DEVICE).random_()
    to = torch.empty_like(big)
    copy = median_seconds(lambda: to.copy_(big), 3 if TINY else 20)
    found = {"matmul_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_second": 2 * big.numel() / copy / 1e9}
    (WORK / "ceilings.json").write_text(json.dumps(found))
    return found


def median_seconds(work: Callable[[], Any], times: int) -> float:
    each = []
    for number in range(times + 3):
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        if number >= 3:
            each.append(time.perf_counter() - begin)
    return sorted(each)[len(each) // 2]


def env_train() -> dict[str, Any]:
    """By the command line, as a user types it."""
    folder = WORK / "first"
    cli(*small(steps=3), f"hydra.run.dir={folder}")
    record = json.loads((folder / "record.json").read_text())
    found = losses_of(folder)
    return {"ok": record["status"] == "completed" and all(map(math.isfinite, found)), "losses": " ".join(f"{one:.4f}" for one in found),
            "device": record["device"][:50], "not_deterministic": record.get("numerics", {}).get("not_deterministic"),
            "peak_gpu_mib": record["memory"].get("peak_gpu_bytes", 0) // MIB}  # fmt: skip


def env_reload() -> dict[str, Any]:
    told = cli(*using(), "action=reload", f"adapter={WORK / 'first'}")
    return {
        "proof": " | ".join(
            line.strip()
            for line in told["text"].splitlines()
            if "equals" in line or "differs" in line or "landed" in line
        )
    }


def env_merge() -> dict[str, Any]:
    told = cli(*using(), "action=merge", f"adapter={WORK / 'first'}", f"action.output_dir={WORK / 'first-merged'}")
    return {"proof": " | ".join(line.strip() for line in told["text"].splitlines() if "equals" in line)}


def env_generate() -> dict[str, Any]:
    run(
        *on(base("nano")),
        "action=generate",
        f"adapter={WORK / 'first'}",
        'action.prompt="Is 4 even?"',
        "action.max_new_tokens=8",
        name="say",
    )
    return {}


def env_default() -> dict[str, Any]:
    """device=auto, dtype=auto: what a user of a GPU gets without typing anything."""
    done = run(*small(steps=4), "device=auto", "device.dtype=auto")
    return finite(done.out_dir) | {"device": done.facts["device"][:60]}


# ----------------------------------------------------------------------------------------------------------------- phase 2

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


def correct_cases(options: Any) -> dict[str, tuple[float, bool]]:
    first = ["cpu_and_gpu", "same_seed", "same_seed_bfloat16", "kill_and_resume", "bfloat16", "float16", "shared_base", "shared_base_bfloat16", "conv1d",
             "generate_mixed", "cpu_adapter_on_gpu", "replay", "plan", "offload"]  # fmt: skip
    slow = {"torch_compile": 90.0, "flex_attention": 60.0}  # each in a process of its own: a compiler may take it along
    long = {"kill_and_resume": 75.0}
    order = [*first, *[name for name in KNOBS if name not in slow], *RUNS, *slow]
    return {name: ((slow | long).get(name, 45.0), name in slow) for name in order}


def correct(case: str) -> dict[str, Any]:
    if case in KNOBS:
        return knob(case)
    if case in RUNS:
        return plain_run(case)
    return globals()[f"correct_{case}"]()


def kept_run(name: str, *overrides: str) -> Path:
    """Folder of a run that several cases need; made once."""
    mark = WORK / f"kept-{name}"
    if not mark.exists():
        mark.write_text(str(run(*overrides, name=name).out_dir))
    return Path(mark.read_text())


def reference() -> Path:
    return kept_run("reference", *small())


def correct_cpu_and_gpu() -> dict[str, Any]:
    there, here = reference(), run(*small(device="cpu"), name="cpu").out_dir
    (WORK / "kept-cpu").write_text(str(here))
    a, b = losses_of(there), losses_of(here)
    distance = apart(there, here)
    return {
        "ok": distance < 1e-2,
        "max_relative_apart": distance,
        "loss_apart": max(abs(x - y) for x, y in zip(a, b, strict=True)),
        "loss_last": a[-1],
    }


def correct_same_seed(dtype: str = "float32") -> dict[str, Any]:
    one, two = (run(*small(dtype)).out_dir for _ in range(2))
    record = json.loads((one / "record.json").read_text())
    return {"ok": digest(one) == digest(two), "identical": digest(one) == digest(two), "max_relative_apart": apart(one, two),
            "not_deterministic": record.get("numerics", {}).get("not_deterministic")}  # fmt: skip


def correct_same_seed_bfloat16() -> dict[str, Any]:
    return correct_same_seed("bfloat16")


def correct_kill_and_resume() -> dict[str, Any]:
    """Killed after step 7 of 12 with a checkpoint at 4, continued, against a run that nobody killed."""
    found: dict[str, Any] = {"ok": True}
    for dtype in ("float32", "bfloat16"):
        typed = [*small(dtype, steps=12), "trainer.save_strategy=steps", "trainer.save_steps=4"]
        whole = run(*typed, name="whole").out_dir
        killed = new("killed")
        told = execute([sys.executable, str(HERE), "--killed", "7", str(killed), *typed], 40 * SLOW)
        if told["code"] != -signal.SIGKILL:
            raise RuntimeError(f"the run to be killed ended with {told['code']}: {told['text'][-300:]}")
        again = run(*typed, f"action.resume={killed}", name="again")
        same = digest(whole) == digest(again.out_dir)
        found |= {"ok": found["ok"] and same, f"{dtype}_identical": same, f"{dtype}_apart": apart(whole, again.out_dir)}
        found["resumed_from"] = Path(str(again.facts.get("resumed_from"))).name
    return found


def killed(after: int, folder: str, overrides: list[str]) -> None:
    """A run that is killed with -9 after so many steps."""
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    import peftrun

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= after:
                os.kill(os.getpid(), signal.SIGKILL)

    DEFAULT_CALLBACKS.append(Kill())
    peftrun.run(*overrides, out_dir=folder)


def correct_bfloat16() -> dict[str, Any]:
    done = run(*small("bfloat16"))
    a, b = losses_of(done.out_dir), losses_of(reference())
    return (
        finite(done.out_dir)
        | {"loss_apart_from_float32": max(abs(x - y) for x, y in zip(a, b, strict=True))}
        | reloaded(done.out_dir, "bfloat16")
    )


def correct_float16() -> dict[str, Any]:
    done = run(*small("float16"))
    return finite(done.out_dir) | reloaded(done.out_dir, "float16")


def reloaded(folder: Path, dtype: str = "float32", *more: str) -> dict[str, Any]:
    """The proof of a reload: raises where it fails."""
    found = run(*using(dtype), *more, "action=reload", "action.evaluate=false", f"adapter={folder}", name="reload")
    each = found.facts.get("adapters") or [{}]
    return {"reload_differs_from_saved": each[0].get("saved_difference", "?")}


def correct_shared_base(dtype: str = "float32") -> dict[str, Any]:
    """Four cells trained as one batch, against each alone."""
    import peftrun
    from peftrun.planning.joint_memory import Limits
    from peftrun.runs import execute as run_executor

    cells = [[*small(dtype), f"lora.r={rank}", f"trainer.learning_rate={rate}", f"seed={seed}"]
             for rank, rate, seed in ((4, "1e-3", 0), (8, "1e-3", 1), (8, "5e-3", 0), (16, "2e-3", 2))]  # fmt: skip
    folders = [new("joint") for _ in cells]
    begin = time.perf_counter()
    run_executor.execute_jointly([peftrun.load(*cell) for cell in cells], folders, Limits(cells=len(cells)))
    joint = time.perf_counter() - begin
    states = [json.loads((folder / "record.json").read_text()) for folder in folders]
    bad = [one.get("error") for one in states if one["status"] != "completed"]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(cells)} cells failed: {bad[0]}")
    begin = time.perf_counter()
    lone = [run(*cell, name="alone").out_dir for cell in cells]
    each = [apart(a, b) for a, b in zip(folders, lone, strict=True)]
    far = max(
        abs(x - y) for a, b in zip(folders, lone, strict=True) for x, y in zip(losses_of(a), losses_of(b), strict=True)
    )
    # In float32 what differs is rounding; in bfloat16 as much as two lone runs of other batch sizes do.
    near, close = (1e-2, 1e-4) if dtype == "float32" else (0.5, 0.1)
    return {
        "ok": max(each) < near and far < close,
        "max_relative_apart": max(each),
        "loss_apart": far,
        "joint_s": joint,
        "alone_s": time.perf_counter() - begin,
    }


def correct_shared_base_bfloat16() -> dict[str, Any]:
    return correct_shared_base("bfloat16")


def correct_conv1d() -> dict[str, Any]:
    typed = small(folder=gpt2())
    done = run(*typed)
    found = finite(done.out_dir) | reloaded(done.out_dir, "float32", f"model.name_or_path={gpt2()}")
    run(*using(folder=gpt2()), "action=merge", f"adapter={done.out_dir}", name="merged")
    return found | {"merged": "proved"}


def correct_generate_mixed() -> dict[str, Any]:
    """Rows of two adapters and of the base in one batch: each answer as its adapter gives it alone."""
    one, two = reference(), kept_run("two", *small(), "seed=1", "lora.r=4")
    texts = [f"Is {n} even?" for n in range(6)]
    rows = WORK / "prompts.jsonl"
    names = ["one", "two", "base"]
    rows.write_text(
        "".join(json.dumps({"prompt": text, "adapter": names[n % 3]}) + "\n" for n, text in enumerate(texts))
    )
    both = f"adapter={{one: {one}, two: {two}}}"
    mixed = said(
        run(
            *on(base("nano")),
            "action=generate",
            both,
            f"action.prompts_file={rows}",
            "action.max_new_tokens=12",
            name="mixed",
        ).out_dir
    )
    alone = {}
    for name, chosen in (("one", [f"adapter={one}"]), ("two", [f"adapter={two}"]), ("base", [])):
        file = WORK / f"prompts-{name}.txt"
        file.write_text("".join(text + "\n" for n, text in enumerate(texts) if names[n % 3] == name))
        alone[name] = iter(
            said(
                run(
                    *on(base("nano")),
                    "action=generate",
                    *chosen,
                    f"action.prompts_file={file}",
                    "action.max_new_tokens=12",
                    name=name,
                ).out_dir
            )
        )
    expected = [next(alone[names[n % 3]]) for n in range(len(texts))]
    same = sum(a == b for a, b in zip(mixed, expected, strict=True))
    return {"ok": same == len(texts), "equal": f"{same} of {len(texts)}", "distinct_answers": len(set(mixed))}


def said(folder: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in (folder / "generations.jsonl").read_text().splitlines()]


def correct_cpu_adapter_on_gpu() -> dict[str, Any]:
    """Trained on the CPU, reloaded, measured and merged here."""
    folder = kept_run("cpu", *small(device="cpu"))
    told = run(*using(), "action=reload", f"adapter={folder}")
    run(*using(), "action=merge", f"adapter={folder}", name="merged")
    before = json.loads((folder / "record.json").read_text())["metrics"]["after"]["loss"]
    now = (told.metrics.get("after") or told.metrics).get("loss", math.nan)
    return {"ok": not abs(now - before) > 1e-3, "held_out_loss_cpu": before, "held_out_loss_here": now}


def correct_replay() -> dict[str, Any]:
    done = run("action=replay", f"run={reference()}", name="replay")
    return {"said": "; ".join(f"{key}: {value}" for key, value in done.summary)[:200]}


def correct_plan() -> dict[str, Any]:
    done = run(*small(), "action=plan", name="plan")
    return {"said": "; ".join(f"{key}: {value}" for key, value in done.summary)[:200]}


def correct_offload() -> dict[str, Any]:
    """A base of which only a part may lie on the GPU."""
    where = "{0: 8MiB, cpu: 8GiB}" if DEVICE == "cuda" else "{cpu: 8GiB}"
    typed = [one for one in using() if not one.startswith("device")] + [
        "device=offload",
        "device.dtype=float32",
        f"++device.max_memory={where}",
    ]
    typed += [] if DEVICE == "cuda" else ["device.type=cpu"]
    done = run(*typed, "action=evaluate", f"adapter={reference()}", name="offload")
    before = json.loads((reference() / "record.json").read_text())["metrics"]["after"]["loss"]
    found = (done.metrics.get("after") or done.metrics).get("loss", math.nan)
    return {
        "ok": not abs(found - before) > 1e-3,
        "held_out_loss": found,
        "whole_on_the_device": before,
        "device": done.facts.get("device", "")[-60:],
    }


def knob(case: str) -> dict[str, Any]:
    done = run(*small(), *KNOBS[case], name=case)
    distance = apart(done.out_dir, reference())
    a, b = losses_of(done.out_dir), losses_of(reference())
    far = max(abs(x - y) for x, y in zip(a, b, strict=True))
    return {"ok": far < 1e-2, "max_relative_apart": distance, "loss_apart": far, "wall_s": done.facts["wall"]}


def plain_run(case: str) -> dict[str, Any]:
    overrides = RUNS[case]
    groups = [one for one in overrides if one.startswith(("lora=", "task="))]
    typed = [one for one in small() if not (groups and groups[0].startswith("task=") and one.startswith("task="))]
    more = (
        [f"task.data.path={pairs()}", "task.data.num_test_rows=8"] if groups and groups[0].startswith("task=") else []
    )
    done = run(*typed, *overrides, *more, name=case)
    found = finite(done.out_dir)
    if case == "full_fine_tuning":
        return found
    return found | reloaded(done.out_dir)


# ----------------------------------------------------------------------------------------------------------------- phase 3

ORDER = ["peftrun", "trainer", "trl", "peftrun_liger", "peftrun_nondeterministic", "peftrun_checkpointing", "trl_bf16_base", "trainer_checkpointing",
         "peftrun_compile"]  # fmt: skip
CHOICES = {
    "peftrun": [],
    "peftrun_liger": ["trainer.use_liger_kernel=true"],
    "peftrun_nondeterministic": ["device.deterministic=false"],
    "peftrun_checkpointing": ["trainer.gradient_checkpointing=true"],
    "peftrun_compile": ["trainer.torch_compile=true"],
}


def train_cases(size: str) -> Callable[[Any], dict[str, tuple[float, bool]]]:
    def cases(options: Any) -> dict[str, tuple[float, bool]]:
        most = 75.0 if size == "1b" else 110.0
        names = ORDER if size == "1b" else [one for one in ORDER if one != "trainer_checkpointing"]
        return {"base": (90.0, True), **{name: (most, True) for name in names}}

    return cases


def train_settings(size: str) -> tuple[int, int]:
    """Tokens of a row, rows of a step."""
    if TINY:
        return 64, 2
    if size == "1b":
        return 2048, 8
    import torch

    room = torch.cuda.get_device_properties(0).total_memory / GIB
    return 4096, GIVEN["batch8"] or (2 if room > 100 else 1)


def flops_per_token(folder: Path, rank: int, tokens: int) -> tuple[float, float, int, int]:
    """Of the matrix products (6 P (2 + lora / frozen) / 3: the frozen weights need no gradient of their own), and of causal attention;
    frozen and trained parameters of the matrix products."""
    config = json.loads((folder / "config.json").read_text())
    h, inner, layers, heads, kv = (
        config[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
    )
    head = config.get("head_dim") or h // heads
    shapes = [(h, heads * head), (h, kv * head), (h, kv * head), (heads * head, h), (h, inner), (h, inner), (inner, h)]
    frozen = layers * sum(a * b for a, b in shapes) + h * config["vocab_size"]
    lora = layers * sum(rank * (a + b) for a, b in shapes)
    return 6 * frozen * (2 + lora / frozen) / 3, 6.0 * layers * heads * head * tokens, frozen, lora


def mfu(folder: Path, rank: int, tokens: int, per_second: float) -> dict[str, Any]:
    products, attention, frozen, lora = flops_per_token(folder, rank, tokens)
    rate = (products + attention) * per_second / 1e12
    ceiling = WORK / "ceilings.json"
    measured = json.loads(ceiling.read_text())["matmul_tflops"] if ceiling.exists() else None
    return {
        "tflops": rate,
        "mfu_of_989": rate / 989,
        "mfu_of_measured": rate / measured if measured else None,
        "frozen": frozen,
        "trained": lora,
    }


def train(size: str) -> Callable[[str], dict[str, Any]]:
    def case(name: str) -> dict[str, Any]:
        if name == "base":
            if not (WORK / "ceilings.json").exists():
                env_ceilings()
            begin = time.perf_counter()
            folder = base(size)
            tokens, rows = train_settings(size)
            text_rows(tokens, rows * STEPS + 4)
            files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            return {
                "what": f"{files / 1e9:.1f} GB, {rows} rows of {tokens} tokens a step, made in {time.perf_counter() - begin:.0f} s",
                "rows": rows,
                "tokens": tokens,
            }
        return contestant(size, name)

    return case


def contestant(size: str, name: str) -> dict[str, Any]:
    """Tokens a second from the median of the steps that count, MFU, memory, losses."""
    import statistics

    import torch
    from transformers.trainer import DEFAULT_CALLBACKS

    begun, folder = time.perf_counter(), base(size)
    tokens, rows = train_settings(size)
    stamps = make_stamps()
    DEFAULT_CALLBACKS.append(stamps)
    torch.manual_seed(0)
    notes = (contest_peftrun if name in CHOICES else contest_script)(size, name, folder, tokens, rows)
    each = [b - a for a, b in zip([stamps.begun, *stamps.ended], stamps.ended, strict=False)]
    step = statistics.median(each[LEFT_OUT:])
    found = {"tokens_per_second": rows * tokens / step, "step_seconds": step, "step_least": min(each[LEFT_OUT:]), "step_most": max(each[LEFT_OUT:]),
             "each_step": [round(one, 4) for one in each], "setup_seconds": stamps.begun - begun, "losses": stamps.losses, "peak_gib": stamps.peak or 0.0,
             "reserved_gib": stamps.reserved, "base_dtype": stamps.dtype, "attention": stamps.attention, "batches": stamps.seen.hexdigest()[:12],
             "rows": rows, "tokens": tokens, "notes": f"{notes} base {stamps.dtype}".strip()} | mfu(folder, 16, tokens, rows * tokens / step)  # fmt: skip
    first = WORK / f"losses-{size}.json"
    if not first.exists():
        first.write_text(json.dumps(stamps.losses))
    others = json.loads(first.read_text())
    found["loss_apart"] = max((abs(a - b) for a, b in zip(others, stamps.losses, strict=False)), default=math.nan)
    return found


def make_stamps() -> Any:
    from transformers import TrainerCallback

    class Stamps(TrainerCallback):
        """When steps ended, losses, memory; a digest of the first two batches, to see that all contestants had the same."""

        def __init__(self) -> None:
            self.begun, self.ended, self.losses, self.seen = 0.0, [], [], hashlib.sha256()
            self.peak = self.reserved = self.dtype = self.attention = None
            self.hook: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            import torch

            net = kwargs["model"]
            embeddings = net.get_input_embeddings()
            self.dtype = str(embeddings.weight.dtype).removeprefix("torch.")
            self.attention = getattr(net.config, "_attn_implementation", None)
            if not args.torch_compile:
                self.hook = embeddings.register_forward_pre_hook(
                    lambda module, given: self.seen.update(given[0].cpu().numpy().tobytes())
                )
            if DEVICE == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            self.ended.append(time.perf_counter())
            if self.hook and len(self.ended) == 2:
                self.hook.remove()
                self.hook = None

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            import torch

            self.peak = peak_gpu()
            self.reserved = round(torch.cuda.max_memory_reserved() / GIB, 2) if DEVICE == "cuda" else None

    return Stamps()


def long_rows(folder: Path, tokens: int, rows: int, steps: int = STEPS) -> list[str]:
    return [*on(folder, HALF), "task=plain_text", f"task.data.path={text_rows(tokens, rows * STEPS + 4)}", "task.data.num_test_rows=1", f"task.max_length={tokens}",
            "lora.r=16", "trainer.learning_rate=2e-4", "trainer.warmup_steps=0", f"trainer.max_steps={steps}",
            f"trainer.per_device_train_batch_size={rows}", "trainer.per_device_eval_batch_size=1", "trainer.logging_steps=1", "trainer.save_strategy=no",
            "action.evaluate_before=false", "action.num_samples=0"]  # fmt: skip


def contest_peftrun(size: str, name: str, folder: Path, tokens: int, rows: int) -> str:
    done = run(*long_rows(folder, tokens, rows), *CHOICES[name], name=name)
    if name == "peftrun":
        (WORK / f"kept-adapter-{size}").write_text(str(done.out_dir))
    record = json.loads((done.out_dir / "record.json").read_text())
    heard = record.get("numerics", {}).get("not_deterministic")
    return f"nondeterministic: {','.join(heard)};" if heard else ""


def contest_script(size: str, name: str, folder: Path, tokens: int, rows: int) -> str:
    """What a user writes by hand; rows and their order are peftrun's."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    import peftrun
    from peftrun.tasks import causal_lm

    words = AutoTokenizer.from_pretrained(folder)
    given = causal_lm.load_rows(peftrun.load(*long_rows(folder, tokens, rows)).task, words).build_training_rows()
    if {len(row["input_ids"]) for row in given} != {tokens}:
        raise ValueError("rows are not of the length that was asked for")
    data = Dataset.from_list(given)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    same: dict[str, Any] = dict(
        output_dir=str(new(name)), max_steps=STEPS, learning_rate=2e-4, warmup_steps=0, per_device_train_batch_size=rows, seed=0, data_seed=0,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=DEVICE == "cpu",
    )  # fmt: skip
    set_seed(0)
    if name.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        more: dict[str, Any] = {"model_init_kwargs": {"dtype": HALF}} if name == "trl_bf16_base" else {}
        more |= {"bf16": False} if TINY else {}
        loop: Any = SFTTrainer(
            model=str(folder),
            args=SFTConfig(**same, max_length=tokens, **more),
            train_dataset=data,
            processing_class=words,
            peft_config=lora,
        )
    else:
        net = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, HALF)), lora)
        again = {"gradient_checkpointing": True} if name == "trainer_checkpointing" else {}
        loop = Trainer(
            model=net,
            args=TrainingArguments(bf16=not TINY, **same, **again),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(words),
        )
    loop.train()
    return "checkpointing;" if loop.args.gradient_checkpointing else ""


def profile(case: str) -> dict[str, Any]:
    """Which kernels two steps are made of: profile-CASE.txt."""
    import torch
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    size = case.rsplit("_", maxsplit=1)[-1]
    folder, (tokens, rows) = base(size), train_settings(size)
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    looked = torch.profiler.profile(activities=kinds, acc_events=True)

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            if state.global_step == STEPS // 2 - 1:
                looked.start()
            if state.global_step == STEPS // 2 + 1:
                looked.stop()

    DEFAULT_CALLBACKS.append(Look())
    if case.startswith("peftrun"):
        run(*long_rows(folder, tokens, rows, 8), name="profile")
    else:
        contest_script(size, "trainer", folder, tokens, rows)
    found = looked.key_averages()
    try:
        text = found.table(
            sort_by="self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total",
            row_limit=30,
            max_name_column_width=70,
        )
    except (AttributeError, KeyError):  # as later versions of torch name it
        text = found.table(sort_by="self_device_time_total", row_limit=30, max_name_column_width=70)
    (OUT / f"profile-{case}.txt").write_text(text)
    return {"file": f"profile-{case}.txt"}


# ----------------------------------------------------------------------------------------------------------------- phase 4


def sweep_cases(options: Any) -> dict[str, tuple[float, bool]]:
    names = ["shared_8_135m", "basic_8_135m", "shared_32_135m", "shared_8_1b", "basic_8_1b", "shared_32_1b"]
    return {name: (90.0, True) for name in names}


def sweep(case: str) -> dict[str, Any]:
    """Cells of 4 rows of 128 tokens, all learned. `basic`: Hydra's own launcher, one cell after another in this process."""
    import torch

    from peftrun.cli.main import main as command

    launcher, count, size = case.split("_")
    cells, folder = int(count), base(size)
    tokens, rows, steps = (32, 4, 10) if TINY else (128, 4, 30)
    if TINY:
        cells = 2 if cells == 8 else 4
    rates = ",".join(
        f"{value:g}"
        for value in [1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 3e-3][: max(1, cells // 4 if cells > 8 else cells // 2)]
    )
    ranks = "4,8,16,32" if cells > 8 else "8,16"
    if TINY:
        ranks, rates = ("8,16", "0.001") if cells == 2 else ("8,16", "0.0001,0.003")
    where = new(case)
    typed = [*on(folder, HALF), "task=plain_text", f"task.data.path={text_rows(tokens, 256)}", "task.data.num_test_rows=4", f"task.max_length={tokens}",
             f"trainer.max_steps={steps}", "trainer.warmup_steps=0", f"trainer.per_device_train_batch_size={rows}", "trainer.logging_steps=2",
             "trainer.save_strategy=no", "action.evaluate_before=false", "action.num_samples=0", f"lora.r={ranks}", f"trainer.learning_rate={rates}",
             f"hydra.sweep.dir={where}", "hydra/launcher=shared_base" if launcher == "shared" else "hydra.sweep.subdir=${hydra.job.num}"]  # fmt: skip
    sys.argv = ["peftrun", "-m", *typed]
    begin = time.perf_counter()
    code = command()
    synchronize()
    makespan = time.perf_counter() - begin
    records = {file.parent: json.loads(file.read_text()) for file in where.glob("*/record.json")}
    bad = [one.get("error") for one in records.values() if one["status"] != "completed"]
    if code or bad or len(records) != cells:
        raise RuntimeError(
            f"exit code {code}; {len(records)} of {cells} cells have a record, {len(bad)} failed: {bad[:1]}"
        )
    each = sorted(step_of(one) for one in records)
    middle = each[len(each) // 2]
    joint = middle if launcher == "shared" else None
    cell = middle / cells if launcher == "shared" else middle
    per_second = rows * tokens / cell
    notes = {"cells": cells, "makespan_s": makespan, "joint_step_s": joint, "cell_step_s": cell, "tokens_per_second": per_second, "peak_gib": peak_gpu(),
             "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if DEVICE == "cuda" else None,
             "note": "a joint step ÷ cells" if launcher == "shared" else "a lone step", "loss": sorted(one["objective"] for one in records.values())[0]}  # fmt: skip
    return notes | mfu(folder, 16, tokens, per_second)


def step_of(folder: Path) -> float:
    """Seconds of a step, without the first third."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[len(rows) // 3], rows[-2]
    return (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])


# ----------------------------------------------------------------------------------------------------------------- phase 5


def merge_cases(options: Any) -> dict[str, tuple[float, bool]]:
    return {
        "base": (90.0, False),
        "cp": (60.0, False),
        "peftrun": (60.0, False),
        "peft_gpu": (90.0, False),
        "peft_cpu": (90.0, False),
        "peftrun_proved": (120.0, False),
    }


def adapter_for(size: str, name: str, rank: int = 16, seed: int = 0) -> Path:
    """A LoRA on every linear layer as PEFT writes one, both halves random."""
    folder = WORK / "adapters" / size / name
    if (folder / "adapter_model.safetensors").exists():
        return folder
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base(size)))
    layers = {
        path: (one.in_features, one.out_features)
        for path, one in net.named_modules()
        if isinstance(one, torch.nn.Linear) and path != "lm_head"
    }
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (inputs, outputs) in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) * inputs**-0.5
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.01
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({path.rsplit(".", 1)[1] for path in layers})
    LoraConfig(r=rank, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(folder)
    return folder


def merge(case: str) -> dict[str, Any]:
    folder = base("8b")
    adapter = adapter_for("8b", "merge")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    to = WORK / "merged"
    shutil.rmtree(to, ignore_errors=True)
    if case == "base":
        return {"gb": size / 1e9}
    os.sync()  # what was left unwritten is not this one's
    ours = [
        sys.executable,
        "-m",
        "peftrun",
        *on(folder, HALF),
        "action=merge",
        f"adapter={adapter}",
        f"action.output_dir={to}",
        "action.num_eval_rows=0",
    ]
    command = {
        "cp": ["cp", "-r", str(folder), str(to)],
        "peftrun": [*ours, "action.verify=false"],
        "peftrun_proved": ours,
        "peft_cpu": [sys.executable, str(HERE), "--peft-merge", "cpu", str(folder), str(adapter), str(to)],
        "peft_gpu": [sys.executable, str(HERE), "--peft-merge", DEVICE, str(folder), str(adapter), str(to)],
    }[case]
    try:
        told = execute(command, 115 * SLOW)
        if told["code"]:
            raise RuntimeError(f"exit code {told['code']}: {' | '.join(told['text'].strip().splitlines()[-4:])}")
        gpu = re.findall(r"peak_gpu=([\d.]+)", told["text"])
        found = {
            "seconds": told["seconds"],
            "peak_rss_gib": told["rss"] / GIB,
            "peak_gpu_gib": float(gpu[-1]) if gpu else None,
            "gb": size / 1e9,
        }
        found["proof"] = " | ".join(line.strip() for line in told["text"].splitlines() if "equals" in line)
        if case == "peftrun":
            found["differing"] = differing(folder, adapter, to)
        return found
    finally:
        shutil.rmtree(to, ignore_errors=True)


def differing(folder: Path, adapter: Path, merged: Path) -> str:
    """How many merged tensors are not W + 2 B A, computed in float32 on the device and rounded once; of layers 0 and 1 and what is in no layer."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    lora = load_file(adapter / "adapter_model.safetensors")
    wrong = seen = 0
    torch.backends.cuda.matmul.allow_tf32 = False
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as one, safe_open(merged / file.name, "pt") as other:
            for key in one:
                if "layers." in key and int(key.split("layers.")[1].split(".")[0]) > 1:
                    continue
                path, value = "base_model.model." + key.removesuffix(".weight"), one.get_tensor(key)
                if f"{path}.lora_A.weight" in lora:
                    down, up = (lora[f"{path}.lora_{side}.weight"].float() for side in "AB")
                    value = (value.float() + up @ down * 2.0).to(value.dtype)
                seen, wrong = seen + 1, wrong + (not torch.equal(value, other.get_tensor(key)))
    return f"{wrong} of {seen}"


def peft_merge(device: str, folder: str, adapter: str, to: str) -> None:
    """As the documentation of PEFT has it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    PeftModel.from_pretrained(net, adapter).merge_and_unload().save_pretrained(to, max_shard_size="5GB")
    if device == "cuda":
        print(f"peak_gpu={torch.cuda.max_memory_allocated() / GIB:.2f}")


# ----------------------------------------------------------------------------------------------------------------- phase 6


def serve_cases(options: Any) -> dict[str, tuple[float, bool]]:
    return {
        "load": (80.0, False),
        "mixed": (60.0, False),
        "per_adapter": (60.0, False),
        "one_by_one": (60.0, False),
        "mixed_again": (60.0, False),
        "server": (80.0, False),
    }


SERVED: dict[str, Any] = {}


def serve(case: str) -> dict[str, Any]:
    """Of benchmarks/serve.py: its requests, and its run of the engine; base, adapters and the loops without the engine are of this file."""
    import torch

    sys.path.insert(0, str(Path(GIVEN["root"]) / "benchmarks"))
    import serve as benchmark

    adapters, count = (2, 6) if TINY else (8, 64)
    asked = benchmark.requests(adapters, count, (4, 8) if TINY else (16, 48))
    if case == "server":
        return serve_http(adapters)
    if "net" not in SERVED:
        SERVED["base"], SERVED["net"] = served(adapters)
        warm_up = [(name, text, 2) for name, text, _ in asked[:4]]
        mixed(benchmark, warm_up)
        in_turn(warm_up, 1)
    if case == "load":
        return {"ok": True, "requests": f"{count} for {adapters} adapters"}
    if case == "one_by_one":
        asked = asked[: 3 if TINY else 12]
    synchronize()
    begin = time.perf_counter()
    if case.startswith("mixed"):
        mixed(benchmark, asked)
    elif case == "per_adapter":
        for name in dict.fromkeys(name for name, _, _ in asked):
            in_turn([one for one in asked if one[0] == name], 16)
    else:
        in_turn(asked, 1)
    synchronize()
    seconds, tokens = time.perf_counter() - begin, sum(one for _, _, one in asked)
    del torch
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "requests": len(asked),
        "peak_gib": peak_gpu(),
    }


def mixed(benchmark: Any, asked: list[Any]) -> None:
    """The benchmark's own run of the engine, which loads action=serve for the embedded model; that is not there, so for this base."""
    from unittest.mock import patch

    import peftrun

    load = peftrun.load
    with patch("peftrun.load", lambda *overrides: load(*on(base("1b"), HALF), *overrides)):
        benchmark.continuous(SERVED["base"], SERVED["net"], asked, 16)


def served(adapters: int) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model

    import peftrun
    from peftrun.models import base as base_models
    from peftrun.models import device

    spec = peftrun.load("action=serve", *on(base("1b"), HALF))
    found = base_models.load_base(spec.model, device.resolve_device(spec.device))
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    net = get_peft_model(found.model, lora, adapter_name="a0")
    for number in range(1, adapters):
        net.add_adapter(f"a{number}", lora)
    found.model.generation_config.eos_token_id = None
    found.tokenizer.eos_token = None
    return found, net.requires_grad_(False).eval()


def in_turn(asked: list[Any], batch: int) -> None:
    """PEFT alone: the adapter set, rows of it in padded batches."""
    import torch

    words, net = SERVED["base"].tokenizer, SERVED["net"]
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        net.set_adapter(rows[0][0])
        given = words([text for _, text, _ in rows], padding=True, padding_side="left", return_tensors="pt").to(DEVICE)
        with torch.inference_mode():
            net.generate(
                **given,
                max_new_tokens=max(tokens for _, _, tokens in rows),
                do_sample=False,
                pad_token_id=words.pad_token_id,
            )


def serve_http(adapters: int) -> dict[str, Any]:
    """`peftrun action=serve` in a process of its own: twelve requests over HTTP at once, and how it ends."""
    import concurrent.futures
    import urllib.request

    SERVED.clear()
    tidy()
    listed = ", ".join(f"a{number}: {adapter_for('1b', f'a{number}', seed=number)}" for number in range(adapters))
    log = WORK / "server.txt"
    port = 18000 + os.getpid() % 2000
    command = [
        sys.executable,
        "-m",
        "peftrun",
        *on(base("1b"), HALF),
        "action=serve",
        f"adapter={{{listed}}}",
        f"action.port={port}",
    ]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=WORK, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    begin = time.perf_counter()
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).read()
                break
            if process.poll() is not None or time.perf_counter() - begin > 60 * SLOW:
                raise RuntimeError(f"the server does not answer: {log.read_text()[-400:]}")
            time.sleep(0.2)
        ready = time.perf_counter() - begin

        def ask(number: int) -> int:
            body = {
                "model": f"a{number % adapters}",
                "prompt": f"number {number} says",
                "max_tokens": 16,
                "temperature": 0,
            }
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            return int(
                json.loads(urllib.request.urlopen(request, timeout=30 * SLOW).read())["usage"]["completion_tokens"]
            )

        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            tokens = sum(pool.map(ask, range(12)))
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGINT)
        code = process.wait(20 * SLOW)
        return {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "requests": 12,
            "ready_s": ready,
            "exit_code": code,
        }
    finally:
        process.kill()
        process.wait()
        print(log.read_text()[-3000:])


# ------------------------------------------------------------------------------------------------------ phases 7 and more


def tests(case: str) -> dict[str, Any]:
    from importlib.util import find_spec

    where = (
        ["tests/actions", "tests/test_lora.py", "tests/test_training.py", "tests/sweep/test_together.py"]
        if not TINY
        else ["tests/test_lora.py"]
    )
    several = ["-n", "14"] if find_spec("xdist") and not TINY else []
    log = OUT / "tests.txt"
    os.environ.pop("PEFTRUN_CACHE", None)  # the tests have their own
    here = os.getcwd()
    global WORK
    WORK = Path(GIVEN["root"])
    try:
        found = execute(
            [sys.executable, "-m", "pytest", "-vv", "-rfE", "-p", "no:cacheprovider", "-m", "not slow and not embedded and not wheel", *where, "--maxfail=10",
             "--timeout=100", "--tb=short", *several],
            140 * SLOW, log,
        )  # fmt: skip
    finally:
        WORK = Path(here)
    failed = sorted(
        {
            one
            for pair in re.findall(r"(?:FAILED|ERROR) (tests/\S+)|^(tests/\S+) (?:FAILED|ERROR)", found["text"], re.M)
            for one in pair
            if one
        }
    )
    last = next(
        (line for line in reversed(found["text"].splitlines()) if re.search(r"\d+ (passed|failed|error)", line)),
        "no closing line: stopped by the limit",
    )
    return {"ok": found["code"] == 0, "said": last.strip("= "), "failed": ", ".join(failed)[:1500], "file": "tests.txt"}


def method_cases(options: Any) -> dict[str, tuple[float, bool]]:
    return {file.stem: (30.0, False) for file in sorted((ROOT / "conf" / "lora").glob("*.yaml"))}


def methods(case: str) -> dict[str, Any]:
    done = run(*small(steps=3), f"lora={case}", *FEW_STEPS.get(case, []), name=case)
    found = losses_of(done.out_dir)
    more = {} if case == "none" else reloaded(done.out_dir)
    return {"ok": all(map(math.isfinite, found)), "losses": " ".join(f"{one:.3f}" for one in found)} | more


def fixed(**cases: float) -> Callable[[Any], dict[str, tuple[float, bool]]]:
    return lambda options: {name: (seconds, False) for name, seconds in cases.items()}


def chosen(cases: Callable[[Any], dict[str, tuple[float, bool]]]) -> Callable[[Any], dict[str, tuple[float, bool]]]:
    return lambda options: {
        name: how for name, how in cases(options).items() if not options.only or re.search(options.only, name)
    }


CASES = {name: chosen(cases) for name, cases in {
    "env": fixed(versions=60, gpu=20, ceilings=30, train=60, reload=40, merge=40, bfloat16_default=30, generate=30),
    "correct": correct_cases,
    "train1b": train_cases("1b"),
    "train8b": train_cases("8b"),
    "sweep": sweep_cases,
    "merge": merge_cases,
    "serve": serve_cases,
    "tests": fixed(project=160),
    "methods": method_cases,
    "profile": lambda options: {"peftrun_1b": (60.0, True), "trainer_1b": (60.0, True)},
}.items()}  # fmt: skip
FUNCTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "env": env, "correct": correct, "train1b": train("1b"), "train8b": train("8b"), "sweep": sweep, "merge": merge, "serve": serve, "tests": tests,
    "methods": methods, "profile": profile,
}  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child()
    elif sys.argv[1:2] == ["--killed"]:
        killed(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    elif sys.argv[1:2] == ["--measured"]:
        measured(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1:2] == ["--peft-merge"]:
        peft_merge(*sys.argv[2:6])
    else:
        main()

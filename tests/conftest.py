"""Tiny models built on the spot, tiny data, and the command line run in this process or in one of its own."""

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
ROOT = Path(__file__).parent.parent
SAMPLED_STEPS = ["trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]
TINY_STEPS = [*SAMPLED_STEPS, "action.num_samples=0"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=int, default=1, help="of slow tests run one in so many, chosen by the commit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that take longest first, so that no process ends with one; of slow tests the commit's share."""
    items.sort(key=lambda item: not item.get_closest_marker("first"))
    share = config.getoption("--share")
    if share > 1:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        chosen = int(head, 16) % share
        left = [one for one in items if one.get_closest_marker("slow") and crc32(one.nodeid.encode()) % share != chosen]
        config.hook.pytest_deselected(items=left)
        items[:] = [one for one in items if one not in left]


@dataclass(frozen=True)
class Outcome:
    """How one command line ended."""

    code: int
    out: str
    err: str
    run_dir: Path | None  # the run folder it left, if any

    def record(self) -> dict:
        assert self.run_dir is not None, self.err
        return json.loads((self.run_dir / "record.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PEFTRUN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_flushing() -> None:
    """Nothing waits for the disk: only a power cut could tell. What a kill or a full disk leaves is tested in processes of their own."""
    os.fsync = lambda handle: None


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Imported modules are some million objects, which every training would otherwise look through for garbage."""
    gc.collect()
    gc.freeze()


def run_folders(where: Path) -> set[Path]:
    return {path.parent for path in where.glob("outputs/**/record.json")}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `peftrun ARGS` in this process, in an empty folder."""
    from peftrun.cli.main import main
    from peftrun.config import values as config

    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Outcome:
        before = run_folders(Path.cwd())
        monkeypatch.setattr(config, "_REPORTED", set())  # as in a process of its own
        monkeypatch.setattr(sys, "argv", ["peftrun", *args])
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err, next(iter(sorted(run_folders(Path.cwd()) - before)), None))

    return run


def cli_here(where: Path, *args: str) -> Outcome:
    """Runs `peftrun ARGS` in this process, in `where`: for fixtures that outlive one test."""
    from peftrun.cli.main import main

    before, out, err, argv = run_folders(where), io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["peftrun", *args]
    try:
        with contextlib.chdir(where), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue(), next(iter(sorted(run_folders(where) - before)), None))


def subprocess_cli(where: Path, *args: str, **env: str) -> Outcome:
    """Runs `python -m peftrun ARGS` in a process of its own."""
    before = run_folders(where)
    done = subprocess.run(
        [sys.executable, "-m", "peftrun", *args],
        cwd=where,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, next(iter(sorted(run_folders(where) - before)), None))


def jsonl(file: Path, rows: list[dict]) -> Path:
    """The file, with a row of JSON a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Is it spam or ham? yes no good bad",
    "call now to win a prize",
]


def _tokenizer(chat: bool):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    end = "<|im_end|>" if chat else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=end if chat else None)
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def build_llama(folder: Path, seed: int = 0, **changes) -> Path:
    """A random Llama of two layers with a chat template. Other keyword arguments change its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = _tokenizer(chat=True)
    settings = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**settings | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_gpt2(folder: Path, seed: int = 0) -> Path:
    """A random GPT-2 of two layers: Conv1D projections, no chat template, no pad token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer(chat=False)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs: a number is even or odd."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def on_tiny(data: Path) -> Callable[[Path], list[str]]:
    """Overrides that put a run on a tiny model and the tiny data, in float32 so that equality is exact."""

    def overrides(model: Path) -> list[str]:
        return [
            "model=pretrained", f"model.name_or_path={model}", "task=instruction", f"task.data.path={data}",
            "task.data.num_test_rows=8", "task.max_length=64", "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2",
        ]  # fmt: skip

    return overrides


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path, on_tiny) -> Path:
    """A run folder with an adapter that was trained for four steps on the tiny Llama."""
    where = tmp_path_factory.mktemp("trained")
    outcome = cli_here(where, *on_tiny(llama), *SAMPLED_STEPS)
    assert outcome.code == 0, outcome.err
    assert outcome.run_dir is not None
    return outcome.run_dir

"""Servers in processes of their own, tiny adapters to serve, and what each adapter answers offline."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from merge_cases import FAMILIES, trained_adapter
from openai import OpenAI
from peft import PeftModel
from transformers import AutoTokenizer

PLAIN = {"r": 4, "target_modules": "all-linear", "lora_alpha": 32}
KINDS: dict[str, dict[str, Any]] = {
    "one": PLAIN,
    "two": {**PLAIN, "r": 2, "target_modules": ["q_proj", "down_proj"]},
    "dora": {**PLAIN, "use_dora": True},
    "full": {**PLAIN, "modules_to_save": ["norm"]},
}


def adapters(base: Path, folder: Path, *names: str) -> dict[str, Path]:
    """Adapters for a tiny Llama, each of its kind, with weights at random."""
    return {
        name: trained_adapter(FAMILIES["llama"], base, folder / name, KINDS[name], seed=list(KINDS).index(name))
        for name in names
    }


def listed(paths: dict[str, Path]) -> str:
    """As typed."""
    return f"adapter={{{', '.join(f'{name}: {path}' for name, path in paths.items())}}}"


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen
    url: str  # ends with /v1
    where: Path

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def client(self, **how: Any) -> OpenAI:
        return OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 120} | how)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)

    def record(self) -> dict:
        found = next(self.where.glob("outputs/serve/*/record.json"))
        return json.loads(found.read_text())


@contextmanager
def serving(where: Path, *args: str, **env: str) -> Iterator[Server]:
    """A server on a free port, until the block ends."""
    where.mkdir(parents=True, exist_ok=True)
    with (where / "stderr.txt").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "peftrun", "action=serve", "action.port=0", *args],
            cwd=where, env=os.environ | env, stdout=subprocess.PIPE, stderr=err, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/v1", line)
        assert found, (line, (where / "stderr.txt").read_text())
        yield Server(process, found[0], where)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


class Offline:
    """Each adapter alone, as action=generate answers: greedy, in float32."""

    def __init__(self, base: Path, paths: dict[str, Path], family: str = "llama") -> None:
        self._base, self._paths, self._auto = base, paths, FAMILIES[family].auto
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._nets: dict[str, Any] = {}
        self._kept: dict[Any, list[int]] = {}

    def net(self, name: str) -> Any:
        if name not in self._nets:
            net = self._auto.from_pretrained(self._base, dtype=torch.float32)
            self._nets[name] = net if name == "base" else PeftModel.from_pretrained(net, self._paths[name])
            self._nets[name].eval()
        return self._nets[name]

    def ids(self, name: str, prompt: list[int], tokens: int) -> list[int]:
        key = (name, tuple(prompt), tokens)
        if key not in self._kept:
            end = self.tokenizer.eos_token_id
            with torch.inference_mode():
                out = self.net(name).generate(
                    input_ids=torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                    max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=end,
                )  # fmt: skip
            self._kept[key] = out[0, len(prompt) :].tolist()
        return self._kept[key]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def chat(self, name: str, text: str, tokens: int) -> tuple[str, int, int]:
        """What is answered, and the numbers of tokens read and written."""
        prompt = self.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        prompt = list(prompt["input_ids"])
        ids = self.ids(name, prompt, tokens)
        return self.text(ids), len(prompt), len(ids)

    def completion(self, name: str, text: str, tokens: int) -> str:
        return self.text(self.ids(name, self.tokenizer(text)["input_ids"], tokens))

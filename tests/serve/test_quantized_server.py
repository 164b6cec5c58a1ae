"""A server on a 4-bit base model: several adapters, one of them added while it runs, each as it answers alone."""

import json
from pathlib import Path

import httpx
import pytest
import serving
from conftest import build_llama, cli_here, jsonl

pytestmark = pytest.mark.slow
pytest.importorskip("bitsandbytes")
TEXTS = ["Is 3 even?", "call now to win a prize", "yes"]


def test_adapters_on_a_4_bit_base_answer_as_each_alone_and_can_be_replaced(tmp_path, on_tiny):
    base = build_llama(tmp_path / "base", hidden_size=64, intermediate_size=128)
    paths = serving.adapters(base, tmp_path / "adapters", "one", "two")
    settings = [*on_tiny(base), "model.quantization=nf4"]
    file = jsonl(tmp_path / "texts.jsonl", [{"prompt": text} for text in TEXTS])

    def answer_alone(name: str) -> list[str]:
        asked = [f"adapter={paths[name]}", "action=generate", f"action.prompts_file={file}", "action.max_new_tokens=9"]
        where = tmp_path / f"alone-{name}"
        where.mkdir()
        run = cli_here(where, *settings, *asked)
        assert run.code == 0, run.err
        return [
            json.loads(line)["answer"] for line in (Path(run.run_dir) / "generations.jsonl").read_text().splitlines()
        ]

    alone = {name: answer_alone(name) for name in paths}
    assert alone["one"] != alone["two"]
    with serving.serving(tmp_path / "server", *settings, serving.listed({"one": paths["one"]})) as server:
        client = server.client()

        def ask(name: str) -> list[str]:
            return [
                client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=9
                ).choices[0].message.content.strip()  # as action=generate writes it
                for text in TEXTS
            ]  # fmt: skip

        assert ask("one") == alone["one"]
        for name, path, extra in (
            ("two", "two", {}),
            ("one", "two", {"load_inplace": True}),
            ("one", "one", {"load_inplace": True}),
        ):
            body = {"lora_name": name, "lora_path": str(paths[path]), **extra}
            assert httpx.post(f"{server.url}/load_lora_adapter", json=body, timeout=60).status_code == 200
            assert ask(name) == alone[path]
        assert ask("two") == alone["two"]
        assert server.stop() == 0

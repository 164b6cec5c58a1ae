"""Base models, rows and adapters that the cases share; each is written when it is first asked for."""

import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.context import DEVICE, TINY, WORK

VOCABULARY = 49152
SHAPES: dict[str, dict[str, Any]] = {
    "nano": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                 initializer_range=0.2),
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False),
}  # fmt: skip
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def find_tokenizer() -> Path:
    """Folder of the embedded model's tokenizer: bundled, in the cache, or converted now from its package."""
    places = [ROOT / ".gpu" / "tokenizer", *Path.home().glob(".cache/peftrun/models/SmolLM2*")]
    found = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    if found is None:
        import peftrun
        from peftrun.models import base

        found = base.resolve_base_dir(peftrun.load().model)
    return found


def load_tokenizer() -> Any:
    """The embedded model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_tokenizer())


def get_base(name: str) -> Path:
    """Folder of a random Llama of `SHAPES`; bfloat16 but for nano, and with --tiny all others of two small layers."""
    folder = WORK / "bases" / name
    if (folder / ".complete").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer()
    shape = SHAPES[name] | (SMALL if TINY and name != "nano" else {})
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=8192, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        net = LlamaForCausalLM(config).to(torch.float32 if name == "nano" else torch.bfloat16)
    net.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    (folder / ".complete").touch()
    return folder


def get_gpt2() -> Path:
    """Folder of a random GPT-2, whose layers are Conv1D."""
    folder = WORK / "bases" / "gpt2"
    if not (folder / ".complete").exists():
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        tokenizer = load_tokenizer()
        torch.manual_seed(0)
        end = tokenizer.eos_token_id
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=2, n_head=4, eos_token_id=end, bos_token_id=end
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / ".complete").touch()
    return folder


def count_bytes(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_texts(name: str, lengths: Sequence[int]) -> Path:
    """A file of texts, each exactly so many tokens with its end token."""
    file = WORK / f"texts-{name}.jsonl"
    if file.exists():
        return file
    tokenizer, rng = load_tokenizer(), random.Random(0)

    def is_one_token(word: str) -> bool:
        return len(tokenizer(word)["input_ids"]) == 1 == len(tokenizer(f" {word}")["input_ids"])

    vocabulary = sorted(word[1:] for word in tokenizer.get_vocab() if re.fullmatch("Ġ[a-z]{3,9}", word))
    words = [word for word in rng.sample(vocabulary, 600) if is_one_token(word)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = []
    for length in lengths:
        text = " ".join(rng.choices(words, weights, k=length - 1))
        if len(tokenizer(text)["input_ids"]) != length - 1:
            raise ValueError(f"a text of {length - 1} words has {len(tokenizer(text)['input_ids'])} tokens")
        lines.append(json.dumps({"text": text}) + "\n")
    file.write_text("".join(lines))
    return file


def draw_lengths(count: int, mean: float, longest: int) -> list[int]:
    """Token counts from a log-normal (σ 0.7, as news articles are), cut at `longest`."""
    rng, sigma = random.Random(0), 0.7
    centre = math.log(mean) - sigma**2 / 2
    return [max(8, min(longest, round(rng.lognormvariate(centre, sigma)))) for _ in range(count)]


def write_pairs() -> Path:
    """Small rows for every objective: prompt, completion, better, worse."""
    file = WORK / "pairs.jsonl"
    if not file.exists():
        answers = [("no", "yes") if number % 2 else ("yes", "no") for number in range(72)]
        rows = [
            {"prompt": f"Is {number} even?", "completion": right, "better": right, "worse": wrong}
            for number, (right, wrong) in enumerate(answers)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def get_adapter(base: str, name: str, rank: int = 16, seed: int = 0) -> Path:
    """A LoRA on every linear layer as PEFT writes one, both halves random."""
    folder = WORK / "adapters" / base / name
    if (folder / "adapter_model.safetensors").exists():
        return folder
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(get_base(base)))
    layers = {
        path: (layer.in_features, layer.out_features)
        for path, layer in net.named_modules()
        if isinstance(layer, torch.nn.Linear) and path != "lm_head"
    }
    rng, tensors = torch.Generator().manual_seed(seed), {}
    for path, (inputs, outputs) in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=rng) * inputs**-0.5
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=rng) * 0.01
    folder.mkdir(parents=True, exist_ok=True)
    targets = sorted({path.rsplit(".", 1)[1] for path in layers})
    LoraConfig(r=rank, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder

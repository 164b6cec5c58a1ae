"""Adapters with random weights, what PEFT's own merge in float32 makes of them, and what peftrun writes."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from conftest import build_gpt2, build_llama
from encoders import build_bert, build_t5
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from peftrun.adapters import meta_model
from peftrun.adapters.merge import in_memory, streamed_verify, streaming
from peftrun.adapters.merge.job import MergeJob
from peftrun.artifacts import adapter_folder
from peftrun.config.schema.actions import MergeAction
from peftrun.config.schema.run import ModelSpec
from peftrun.io import safetensors_header

TOKENS = torch.arange(24).view(2, 12) + 5


@dataclass(frozen=True)
class Family:
    """How a tiny model of a family is built and loaded, what it is called with, and its modules by name."""

    build: Any
    auto: Any
    task_type: str
    linear: tuple[str, ...]
    embeddings: tuple[str, ...]  # input and output, where an adapter may change them
    norms: tuple[str, ...]
    biased: bool = False  # whether every linear layer has a bias

    def logits(self, net: Any) -> torch.Tensor:
        with torch.inference_mode():
            decoder = {"decoder_input_ids": TOKENS} if self.task_type == "SEQ_2_SEQ_LM" else {}
            return net.eval()(input_ids=TOKENS, **decoder).logits


FAMILIES = {
    "llama": Family(
        build_llama, AutoModelForCausalLM, "CAUSAL_LM",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), ("embed_tokens", "lm_head"),
        ("input_layernorm", "norm"),
    ),
    "gpt2": Family(
        build_gpt2, AutoModelForCausalLM, "CAUSAL_LM", ("c_attn", "attn.c_proj", "mlp.c_proj", "c_fc"),
        ("wte", "lm_head"), ("ln_1", "ln_f"), biased=True,
    ),
    "bert": Family(
        build_bert, AutoModelForSequenceClassification, "SEQ_CLS",
        ("query", "key", "value", "attention.output.dense", "intermediate.dense"), ("word_embeddings",), ("LayerNorm",),
        biased=True,
    ),
    "t5": Family(
        build_t5, AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", ("q", "k", "v", "o", "wi", "wo"), (), ("final_layer_norm",)
    ),
}  # fmt: skip


def stored_base(family: Family, folder: Path, dtype: torch.dtype, shard: str = "5GB", build: Any = None) -> Path:
    """The family's tiny model, or what `build` makes, in files of `dtype`."""
    built = (build or family.build)(folder / "float32")
    net = family.auto.from_pretrained(built, dtype=dtype)
    net.save_pretrained(folder / "base", max_shard_size=shard)
    for file in built.iterdir():
        if not (file.suffix == ".safetensors" or (folder / "base" / file.name).exists()):
            shutil.copyfile(file, folder / "base" / file.name)
    return folder / "base"


def trained_adapter(
    family: Family, base: Path, folder: Path, settings: dict[str, Any], kind: Any = LoraConfig, seed: int = 0
) -> Path:
    """An adapter folder as PEFT saves it, every trained parameter moved at random; PiSSA and OLoRA as plain LoRA."""
    torch.manual_seed(seed)
    net = family.auto.from_pretrained(base, dtype=torch.float32)
    net = get_peft_model(net, kind(**{"task_type": family.task_type} | settings))
    converted = {}
    if str(settings.get("init_lora_weights")).startswith(("pissa", "olora")):
        net.peft_config["default"].init_lora_weights = True
        net.save_pretrained(folder / "start")
        net.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
        converted = {"path_initial_model_for_weight_conversion": str(folder / "start")}
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    net.save_pretrained(folder / "adapter", save_embedding_layers=False, **converted)
    if converted:  # PEFT's conversion drops all but the low-rank factors
        file, whole = folder / "adapter" / "adapter_model.safetensors", get_peft_model_state_dict(net)
        save_file(load_file(file) | {key: value for key, value in whole.items() if ".lora_" not in key}, file)
    return folder / "adapter"


def reference(family: Family, base: Path, adapter: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """Parameters of PEFT's merge in float32; and the logits of the adapter on its base.

    PEFT merges into adapted embeddings in place: tied output weights must be parted from them first, or change too.
    """
    loaded = family.auto.from_pretrained(base, dtype=torch.float32)
    part_tied_weights(loaded, adapter)
    net = PeftModel.from_pretrained(loaded, str(adapter))
    logits = family.logits(net)
    merged = net.merge_and_unload(safe_merge=True)
    return {key: value.detach() for key, value in merged.named_parameters(remove_duplicate=False)}, logits


EMBEDDINGS = ("embed_tokens", "wte", "lm_head")


def part_tied_weights(net: Any, adapter: Path) -> None:
    targets = str(PeftConfig.from_pretrained(str(adapter)).target_modules)
    head = net.get_output_embeddings()
    if head is not None and any(name in targets for name in EMBEDDINGS):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def written(base: Path, adapter: Path, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """PEFT's model without the base's weights, once peftrun has written the merge into `folder`."""
    folder.mkdir(parents=True)
    net = meta_model.build_on_meta(base, model_spec(base), adapter_folder.resolve_adapter(str(adapter)))
    streaming.begin_merged(net, "default", base, folder, dtype).write_rest()
    return net


def model_spec(base: Path) -> ModelSpec:
    return ModelSpec(str(base), None, None, None, None, False)


def proved(net: Any, base: Path, adapter: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The figures of peftrun's own proof of the merge in `folder`."""
    action = MergeAction("merge", "auto", None, True, 1)
    ref = adapter_folder.resolve_adapter(str(adapter))
    job = MergeJob(model_spec(base), action, False, cast(Any, None), base, ref, dtype, ThreadPoolExecutor(1))
    figures, loaded = streamed_verify.verify_merge(job, net, folder, [list(range(5, 12))])
    assert loaded.effect["max_logit_difference"] > 0
    return figures


def streamed(family: Family, base: Path, adapter: Path, folder: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """Parameters in the files that peftrun writes, as loaded; and the logits of that model in float32."""
    net = written(base, adapter, folder)
    proved(net, base, adapter, folder, in_memory.detect_stored_dtype(base))
    net = family.auto.from_pretrained(folder, dtype="auto")
    values = {key: value.detach() for key, value in net.named_parameters(remove_duplicate=False)}
    return values, family.logits(net.float())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the files of a model folder."""
    return {
        key: value for file in safetensors_header.list_weight_files(folder) for key, value in load_file(file).items()
    }


def random_settings(family: Family, seed: int) -> dict[str, Any]:
    """Settings of a LoRA drawn at random among all that change what is merged."""
    draw = random.Random(seed)
    linear = draw.sample(family.linear, draw.randint(1, len(family.linear)))
    regex = rf".*\.({'|'.join(linear)})"
    with_embeddings = [[*linear, name] for name in family.embeddings]
    targets: Any = draw.choice([linear, "all-linear", regex, *with_embeddings])
    settings: dict[str, Any] = {
        "r": draw.choice([1, 2, 5, 8]),
        "lora_alpha": draw.choice([1, 7, 32]),
        "target_modules": targets,
        "use_rslora": draw.random() < 0.3,
        "use_dora": draw.random() < 0.3,
        "init_lora_weights": draw.choice([True, False, "gaussian"]),
    }
    settings["bias"] = draw.choice(["none", "all", "lora_only"])
    if settings["bias"] == "none" and family.biased and not settings["use_dora"] and draw.random() < 0.5:
        settings |= {"lora_bias": True, "init_lora_weights": True}
    if draw.random() < 0.5:
        settings["rank_pattern"] = {linear[0]: draw.choice([1, 3, 6])}
        settings["alpha_pattern"] = {linear[-1]: draw.choice([2, 9])}
    if draw.random() < 0.3 and not isinstance(targets, str):
        settings["layers_to_transform"] = [draw.randint(0, 1)]
    if draw.random() < 0.4:
        head = ["lm_head"] if "lm_head" in family.embeddings and "lm_head" not in targets else []
        settings["modules_to_save"] = [draw.choice([*family.norms, *head])]
    return settings

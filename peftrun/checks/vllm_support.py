"""Which LoRA adapters vLLM supports, rule by rule, as read in the source of vLLM 0.33.0. Light.

`vllm/lora/peft_helper.py` (adapter_config.json), `vllm/lora/utils.py` and `lora_model.py` (names of tensors),
`vllm/config/lora.py` (ranks), `vllm/model_executor/models` (base models, and which of them adapt their embeddings).
"""

from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.classifier_head import TASK_KINDS
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.io import safetensors_header

VERSION = "0.33.0"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that `--max-lora-rank` accepts
TENSORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
EMBEDDINGS = ("embed_tokens", "lm_head", "wte")
WITHOUT_LORA = (  # base models whose class in vLLM is not `SupportsLoRA`
    "GPT2LMHeadModel", "GPTJForCausalLM", "BloomForCausalLM", "FalconForCausalLM", "StableLmForCausalLM",
)  # fmt: skip
WITH_EMBEDDINGS = (  # base models whose `embedding_modules` in vLLM name embeddings and head
    "LlamaForCausalLM", "Llama4ForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM",
    "GraniteForCausalLM", "GraniteMoeForCausalLM", "ExaoneForCausalLM", "Exaone4ForCausalLM", "NemotronForCausalLM",
    "SolarForCausalLM", "JambaForCausalLM", "ApertusForCausalLM", "Lfm2ForCausalLM", "FalconH1ForCausalLM",
)  # fmt: skip
MERGE_ADVICE = "merge it instead (peftrun action=merge adapter=…) and serve the folder"
ANSWER_ADVICE = "generate with peftrun action=generate adapter=…"
MEASURE_ADVICE = "measure it with peftrun action=evaluate adapter=…, or load it with action=reload"


# (what vLLM refuses or would compute wrongly, whether an adapter_config.json has it, what to do instead)
RULES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("methods other than LoRA", lambda config: config.get("peft_type") != "LORA", MERGE_ADVICE),
    ("adapters of classifiers", lambda config: config.get("task_type") in TASK_KINDS, MEASURE_ADVICE),
    ("adapters of encoder-decoder models", lambda config: config.get("task_type") == "SEQ_2_SEQ_LM", MERGE_ADVICE),
    ("DoRA", lambda config: config.get("use_dora"), MERGE_ADVICE),
    ("modules_to_save", lambda config: config.get("modules_to_save"), MERGE_ADVICE),
    ("trained biases (bias)", lambda config: config.get("bias", "none") != "none", MERGE_ADVICE),
    ("biases of the factors (lora_bias)", lambda config: config.get("lora_bias"), MERGE_ADVICE),
    ("trained tokens (trainable_token_indices)", lambda config: config.get("trainable_token_indices"), MERGE_ADVICE),
    ("experts as parameters (target_parameters)", lambda config: config.get("target_parameters"), MERGE_ADVICE),
    ("adapters with invocation tokens (aLoRA)", lambda config: config.get("alora_invocation_tokens"), ANSWER_ADVICE),
    ("repeated layers (layer_replication)", lambda config: config.get("layer_replication"), MERGE_ADVICE),
    ("block-diagonal factors (use_bdlora)", lambda config: config.get("use_bdlora"), MERGE_ADVICE),
    ("QALoRA", lambda config: config.get("use_qalora"), MERGE_ADVICE),
    ("KaSA", lambda config: config.get("kasa_config"), MERGE_ADVICE),
    ("Conv1D layers (GPT-2)", lambda config: config.get("fan_in_fan_out"), MERGE_ADVICE),
    ("an initialization that changes the base model (init_lora_weights)", adapter_rules.get_base_changing_init, adapter_rules.CONVERT_ADVICE),
]  # fmt: skip


def check_vllm_support(source: ExportSource) -> Iterator[str]:
    """One line for each reason why vLLM would refuse this adapter, or would compute other logits than PEFT."""
    option = f"adapter.{source.name}={source.folder}"
    refused = [(feature, advice) for feature, has_feature, advice in RULES if has_feature(source.config)]
    for feature, advice in refused:
        yield f"{option}: vLLM {VERSION} does not support {feature}; {advice}"
    if refused:
        return
    entries = safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)
    names = [entry.name for entry in entries if not entry.name.endswith((*TENSORS, ".base_layer.weight"))]
    if names:
        yield f"{option}: vLLM {VERSION} does not support tensor {names[0]}; {MERGE_ADVICE}"
    # lora_A is (r, in) and lora_embedding_A is (r, vocabulary), so the first size is the module's rank.
    rank = max((entry.shape[0] for entry in entries if entry.name.endswith((TENSORS[0], TENSORS[2]))), default=1)
    if rank > MAX_LORA_RANKS[-1]:
        yield f"{option}: its rank {rank} is above {MAX_LORA_RANKS[-1]}, the maximum of vLLM {VERSION}; {MERGE_ADVICE}"


def check_base_support(source: ExportSource, architecture: str | None) -> Iterator[str]:
    """One line for each reason why vLLM cannot serve this adapter on its base model.

    Args: architecture: the base model's class in transformers; None: not known.
    """
    option = f"adapter.{source.name}={source.folder}"
    if architecture in WITHOUT_LORA:
        yield f"{option}: vLLM {VERSION} has no LoRA for {architecture}; {MERGE_ADVICE}"
    adapted = {
        module
        for entry in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)
        for module in EMBEDDINGS
        if f".{module}.lora_" in entry.name
    }
    if adapted and architecture not in WITH_EMBEDDINGS:
        yield (
            f"{option}: vLLM {VERSION} does not adapt {', '.join(sorted(adapted))} of "
            f"{architecture or 'an unknown base model'}; {MERGE_ADVICE}"
        )


def get_max_lora_rank(rank: int) -> int:
    """The smallest value of `--max-lora-rank` that is at least `rank`."""
    return next(allowed for allowed in MAX_LORA_RANKS if allowed >= rank)

"""What vLLM takes as a LoRA adapter, rule by rule, as read in the source of vLLM 0.33.0. Light.

`vllm/lora/peft_helper.py` (what adapter_config.json may say), `vllm/lora/utils.py` and `lora_model.py` (names of tensors),
`vllm/config/lora.py` (ranks), `vllm/model_executor/models` (which bases, and which of them adapt their embeddings).
"""

from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.io import safetensors_header

VERSION = "0.33.0"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # `--max-lora-rank` takes these alone
TENSORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
EMBEDDINGS = ("embed_tokens", "lm_head", "wte")
WITHOUT_LORA = (  # bases whose class in vLLM is not `SupportsLoRA`
    "GPT2LMHeadModel", "GPTJForCausalLM", "BloomForCausalLM", "FalconForCausalLM", "StableLmForCausalLM",
)  # fmt: skip
WITH_EMBEDDINGS = (  # bases whose `embedding_modules` name embeddings and head
    "LlamaForCausalLM", "Llama4ForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM",
    "GraniteForCausalLM", "GraniteMoeForCausalLM", "ExaoneForCausalLM", "Exaone4ForCausalLM", "NemotronForCausalLM",
    "SolarForCausalLM", "JambaForCausalLM", "ApertusForCausalLM", "Lfm2ForCausalLM", "FalconH1ForCausalLM",
)  # fmt: skip
MERGE_ADVICE = "merge it instead (peftrun action=merge adapter=…) and serve the folder"
ANSWER_ADVICE = "answer with peftrun action=generate adapter=…"
MEASURE_ADVICE = "measure it with peftrun action=evaluate adapter=…, or load it with action=reload"


# (what vLLM refuses or would get wrong, whether a config asks for it, what to do instead)
RULES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("methods other than LoRA", lambda config: config.get("peft_type") != "LORA", MERGE_ADVICE),
    ("classifiers' adapters as a language model's", lambda config: config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"), MEASURE_ADVICE),
    ("adapters of encoder-decoder models", lambda config: config.get("task_type") == "SEQ_2_SEQ_LM", MERGE_ADVICE),
    ("DoRA", lambda config: config.get("use_dora"), MERGE_ADVICE),
    ("modules_to_save", lambda config: config.get("modules_to_save"), MERGE_ADVICE),
    ("trained biases (bias)", lambda config: config.get("bias", "none") != "none", MERGE_ADVICE),
    ("biases of the factors (lora_bias)", lambda config: config.get("lora_bias"), MERGE_ADVICE),
    ("trained tokens (trainable_token_indices)", lambda config: config.get("trainable_token_indices"), MERGE_ADVICE),
    ("experts as parameters (target_parameters)", lambda config: config.get("target_parameters"), MERGE_ADVICE),
    ("an adapter that a call switches on (aLoRA)", lambda config: config.get("alora_invocation_tokens"), ANSWER_ADVICE),
    ("repeated layers (layer_replication)", lambda config: config.get("layer_replication"), MERGE_ADVICE),
    ("block-diagonal factors (use_bdlora)", lambda config: config.get("use_bdlora"), MERGE_ADVICE),
    ("QALoRA", lambda config: config.get("use_qalora"), MERGE_ADVICE),
    ("KaSA", lambda config: config.get("kasa_config"), MERGE_ADVICE),
    ("Conv1D layers (GPT-2)", lambda config: config.get("fan_in_fan_out"), MERGE_ADVICE),
    ("an initialisation that changes the base (init_lora_weights)", adapter_rules.get_base_changing_init, adapter_rules.CONVERT_ADVICE),
]  # fmt: skip


def check_vllm_support(source: ExportSource) -> Iterator[str]:
    """One line for each reason why vLLM would not take this adapter, or would answer otherwise than PEFT."""
    key = f"adapter.{source.name}={source.folder}"
    refused = [(what, instead) for what, asks, instead in RULES if asks(source.config)]
    for what, instead in refused:
        yield f"{key}: vLLM {VERSION} does not take {what}; {instead}"
    if refused:
        return
    entries = safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)
    for other in [one.name for one in entries if not one.name.endswith((*TENSORS, ".base_layer.weight"))][:1]:
        yield f"{key}: vLLM {VERSION} does not take tensor {other}; {MERGE_ADVICE}"
    most = max((one.shape[0] for one in entries if one.name.endswith((TENSORS[0], TENSORS[2]))), default=1)
    if most > MAX_LORA_RANKS[-1]:
        yield f"{key}: its rank {most} is above {MAX_LORA_RANKS[-1]}, the most vLLM {VERSION} takes; {MERGE_ADVICE}"


def check_base_support(source: ExportSource, architecture: str | None) -> Iterator[str]:
    """One line for each reason why the base, or where it is adapted, does not go. `architecture`: its class in transformers; None: not known."""
    key = f"adapter.{source.name}={source.folder}"
    if architecture in WITHOUT_LORA:
        yield f"{key}: vLLM {VERSION} has no LoRA for {architecture}; {MERGE_ADVICE}"
    touched = {
        part
        for one in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)
        for part in EMBEDDINGS
        if f".{part}.lora_" in one.name
    }
    if touched and architecture not in WITH_EMBEDDINGS:
        yield f"{key}: vLLM {VERSION} adapts no {', '.join(sorted(touched))} of {architecture or 'a base that is not known here'}; {MERGE_ADVICE}"


def get_max_lora_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that holds `rank`."""
    return next(allowed for allowed in MAX_LORA_RANKS if allowed >= rank)

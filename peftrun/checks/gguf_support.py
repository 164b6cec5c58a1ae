"""Which LoRA adapters llama.cpp supports in GGUF, as read in its convert_lora_to_gguf.py and llama-adapter.cpp. Light."""

from collections.abc import Iterator

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.checks import vllm_support
from peftrun.io import safetensors_header

MERGE_ADVICE = (
    "merge it instead (peftrun action=merge adapter=…) and convert the folder with llama.cpp's convert_hf_to_gguf.py"
)
ARCHITECTURES = {  # class in transformers → architecture in llama.cpp; only those whose logits were compared
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROTATED = ("llama",)  # GGUF permutes the rows of their query and key projections, for llama.cpp's RoPE
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def check_gguf_support(source: ExportSource) -> Iterator[str]:
    """One line for each reason why llama.cpp would refuse this adapter, or would compute other logits than PEFT."""
    option = f"adapter={source.folder}"
    # A GGUF adapter holds pairs of A and B alone, so what vLLM refuses cannot be stored in it either.
    refused = [feature for feature, has_feature, _ in vllm_support.RULES if has_feature(source.config)]
    for feature in refused:
        yield f"{option}: a GGUF adapter cannot hold {feature}; {MERGE_ADVICE}"
    if refused:
        return
    for entry in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS):
        # PREFIX.LAYER.lora_A.weight
        if not entry.name.endswith(vllm_support.TENSORS[:2]) or entry.name.split(".")[-3] not in LAYERS:
            yield f"{option}: tensor {entry.name} is not of one of the layers {', '.join(LAYERS)}, the only ones that are converted; {MERGE_ADVICE}"
            return

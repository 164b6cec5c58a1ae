"""What llama.cpp takes as a LoRA adapter in GGUF, rule by rule, as read in its convert_lora_to_gguf.py and llama-adapter.cpp. Light."""

from collections.abc import Iterator

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.checks import vllm_support
from peftrun.io import safetensors_header

MERGE_ADVICE = (
    "merge it instead (peftrun action=merge adapter=…) and convert the folder with llama.cpp's convert_hf_to_gguf.py"
)
SCALED = "PEFT's scaling, per-layer ranks and rsLoRA are written so that llama.cpp's alpha/rank gives the same"
ARCHITECTURES = {  # class in transformers → architecture as llama.cpp calls it; those whose answers were compared
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROTATED = ("llama",)  # their query and key rows lie in another order in GGUF
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def check_gguf_support(source: ExportSource) -> Iterator[str]:
    """One line for each reason why llama.cpp would not take this adapter, or would answer otherwise than PEFT."""
    key = f"adapter={source.folder}"
    refused = [what for what, asks, _ in vllm_support.RULES if asks(source.config)]
    for what in refused:
        yield f"{key}: a GGUF adapter cannot hold {what}; {MERGE_ADVICE}"
    if refused:
        return
    for name in [one.name for one in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)]:
        if not name.endswith(vllm_support.TENSORS[:2]) or name.split(".")[-3] not in LAYERS:
            yield f"{key}: tensor {name} is not of one of the layers {', '.join(LAYERS)}, which alone are converted; {MERGE_ADVICE}"
            return

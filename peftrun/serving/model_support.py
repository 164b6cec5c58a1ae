"""Whether continuous batching works with a base model: plain key-value caches, and positions that are set row by row."""

import inspect
from pathlib import Path

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.models.base import LoadedBase
from peftrun.models.config import load_config
from peftrun.models.tokenizer import CAUSAL_SUFFIXES

BATCH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")  # rotations that depend on the longest row of a batch
ADVICE = "answer with action=generate, or serve it with vLLM (action=export target=vllm)"


def check_config(folder: Path, spec: ModelSpec) -> None:
    """Checks the config of the model in `folder`, before weights are read. Raises: ModelError: it cannot be served."""
    config = load_config(folder, spec)
    key = f"model.name_or_path={spec.name_or_path}"
    names = config.architectures or []
    if names and not config.is_encoder_decoder and not any(name.endswith(CAUSAL_SUFFIXES) for name in names):
        raise ModelError(
            f"{key}: is a {names[0]}, and action=serve answers with decoders alone; choose another model, "
            "or measure this one with action=evaluate adapter=RUN_FOLDER and a task of its kind"
        )
    if config.is_encoder_decoder:
        raise ModelError(
            f"{key}: is an encoder with a decoder, and action=serve answers with a decoder alone; type action=generate"
        )
    # State-space and linear attention layers have cache layers of other classes.
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    if layers - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ModelError(f"{key}: keeps a state that rows cannot join (no plain keys and values); {ADVICE}")
    # Models with several layer types have one dictionary of rope parameters for each.
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [parameters for parameters in rope.values() if isinstance(parameters, dict)]
    rope_types = {str(parameters.get("rope_type")) for parameters in [rope, *nested]}
    unsupported = rope_types & {*BATCH_DEPENDENT_ROPE_TYPES}
    if unsupported:
        raise ModelError(
            f"{key}: its positions (rope_type {min(unsupported)}) depend on the longest row of a batch; {ADVICE}"
        )


def check_loaded(base: LoadedBase) -> None:
    """Raises: ModelError: the model takes no positions, so rows of different lengths cannot share a batch."""
    if "position_ids" not in inspect.signature(base.model.forward).parameters:
        raise ModelError(f"model {base.name}: takes no position_ids, so rows of several lengths cannot join; {ADVICE}")

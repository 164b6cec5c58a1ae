"""The base model's tokenizer, and what its config says about rows. Reads no weights and imports no torch."""

import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from peftrun.artifacts import base_files, base_location, token_settings
from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.artifacts.token_settings import TokenSettings
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files
from peftrun.models.config import apply_arguments, load_config
from peftrun.models.reader import TokenizerInfo
from peftrun.system.silence import suppress_output

CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
POSITIONS_FROM_PAD = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
)  # positions start at pad id + 1
TOKENIZER_FILES = re.compile(r"token|vocab|merges|tekken|\.(model|spm|tiktoken|codes)$")  # names of tokenizer files


def load_tokenizer_info(spec: ModelSpec, head: ClassifierHead | None) -> TokenizerInfo:
    """Tokenizer and config of `spec`'s base model: the same tokenizer that training loads with the weights.

    Raises: ModelError: it is missing, or is of the other kind (language model, encoder).
    """
    path = base_location.resolve_model_path(spec)
    if path.suffix == ".gguf" and path.is_file():
        converted = base_location.converted_gguf_dir(path)
        if converted.is_dir():
            return _load_from_folder(converted, spec, head)
        # not converted yet: tokenizer and config as `gguf.convert_gguf` converts them, without the weights
        with tempfile.TemporaryDirectory(prefix="peftrun-") as temporary, suppress_output():
            for auto_class in (AutoTokenizer, AutoConfig):
                part = auto_class.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
                part.save_pretrained(temporary)
            return _load_from_folder(Path(temporary), spec, head)
    return _load_from_folder(base_location.fetch_base_dir(spec, weights=False), spec, head)


def _load_from_folder(folder: Path, spec: ModelSpec, head: ClassifierHead | None) -> TokenizerInfo:
    try:
        values = atomic_files.read_json(folder / "config.json")
        if spec.trust_remote_code or "auto_map" in values or "model_type" not in values:
            config = load_config(folder, spec)
        else:  # without the dtype, since parsing it would import torch
            config = apply_arguments(AutoConfig.for_model(**_drop_dtype(values)), spec)
        check_model_kind(config, spec, head)
        tokenizer = open_tokenizer(folder, spec, config)
        if settings := token_settings.read_token_settings(spec):
            apply_token_settings(tokenizer, settings, spec)
        set_pad_token(tokenizer, spec, folder)
    except (ValueError, OSError, ImportError) as error:
        raise ModelError(explain_load_error(spec, error)) from error
    if head is not None:
        limit_sequence_length(tokenizer, config)
    embedded = config.get_text_config().vocab_size
    if spec.new_tokens:  # training enlarges the embeddings
        embedded = max(embedded, len(tokenizer))
    return TokenizerInfo(base_files.format_base_name(spec), tokenizer, config, embedded)


def _drop_dtype(values: dict[str, Any]) -> dict[str, Any]:
    others = {key: value for key, value in values.items() if key not in ("dtype", "torch_dtype")}
    return {key: _drop_dtype(value) if isinstance(value, dict) else value for key, value in others.items()}


def load_tokenizer(folder: Path, spec: ModelSpec) -> Any:
    """The tokenizer in `folder`; without a pad token it pads with its end token.

    Raises: ModelError: there is no tokenizer, or it has neither a pad token nor an end token.
    """
    tokenizer = open_tokenizer(folder, spec)
    set_pad_token(tokenizer, spec, folder)
    return tokenizer


def open_tokenizer(folder: Path, spec: ModelSpec, config: Any = None) -> Any:
    """The tokenizer in `folder` as it is there. `config`: the model's, if loaded already. Raises: ModelError: there is none."""
    # checked by name, since transformers may build an empty tokenizer where there are no files
    if not any(TOKENIZER_FILES.search(file.name) for file in folder.iterdir()):
        raise ModelError(
            f"model.name_or_path={spec.name_or_path}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json "
            "from the model it was made from, or choose another model"
        )
    kwargs = {} if config is None else {"config": config}
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **kwargs)


def set_pad_token(tokenizer: Any, spec: ModelSpec, folder: Path) -> None:
    """Lets a tokenizer without a pad token pad with its end token. Raises: ModelError: it has neither."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"model.name_or_path={spec.name_or_path}: its tokenizer has neither a pad token nor an end token; "
            """name one of its tokens: type 'model.special_tokens={eos: "TOKEN"}'"""
        )


def apply_token_settings(tokenizer: Any, settings: TokenSettings, spec: ModelSpec) -> None:
    """Adds the new tokens, and sets special tokens and chat template.

    Raises: ModelError: a new token is in the vocabulary already, a special token is not, or this tokenizer cannot be changed.
    """
    vocab, key = tokenizer.get_vocab(), "model.new_tokens"
    if present := [token for token in settings.new_tokens if token in vocab]:
        raise ModelError(
            f"{key}: {', '.join(present)}: in the vocabulary of {spec.name_or_path} already; leave them out "
            "(lora.trainable_token_indices trains embeddings of tokens that it has)"
        )
    try:
        tokenizer.add_tokens(list(settings.new_tokens), special_tokens=True)
        vocab = tokenizer.get_vocab()
        for role, token in settings.special_tokens.items():
            if token not in vocab:
                raise ModelError(
                    f"model.special_tokens.{role}={token}: is not in the vocabulary of {spec.name_or_path}; name one of its tokens, "
                    f"""or add it: type 'model.new_tokens=["{token}"]'"""
                )
            tokenizer.add_special_tokens({f"{role}_token": token})
        if settings.chat_template is not None:
            tokenizer.chat_template = settings.chat_template
    except NotImplementedError as error:
        raise ModelError(f"{key}: a {type(tokenizer).__name__} cannot be changed ({error}); type {key}=null") from error


def limit_sequence_length(tokenizer: Any, config: Any) -> None:
    """Limits `tokenizer.model_max_length` to the positions of an encoder. RoBERTa's positions start at pad id + 1."""
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    limit -= config.pad_token_id + 1 if config.model_type in POSITIONS_FROM_PAD else 0
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)


def check_model_kind(config: Any, spec: ModelSpec, head: ClassifierHead | None) -> None:
    """Raises: ModelError: an encoder for a language-model task, or a language model for a token classifier."""
    names = config.architectures or []
    causal = any(name.endswith(CAUSAL_SUFFIXES) for name in names)
    key = f"model.name_or_path={spec.name_or_path}"
    if names and head is None and not causal:
        raise ModelError(
            f"{key}: is a {names[0]}, not a causal language model, so it writes no answers; choose another model, "
            "or train and evaluate this one on a task of its kind: type task=spanish_sentiment or task=ner"
        )
    if head is not None and head.kind != "seq_cls" and causal:
        raise ModelError(f"{key}: is a {names[0]}, and a {head.kind} head needs an encoder; type model=minilm")


def explain_load_error(spec: ModelSpec, error: Exception) -> str:
    """A ModelError's text for an error of transformers: the key at fault, the reason, and what to type."""
    if "trust_remote_code" in str(error):
        return (
            f"model.name_or_path={spec.name_or_path}: brings Python code of its own, which is not run; "
            "if you trust it, type model.trust_remote_code=true"
        )
    reason = " ".join(str(error).split())[:300]
    attention = spec.attn_implementation or ""
    if attention and attention.replace("_", "") in reason.lower().replace("_", ""):
        return f"model.attn_implementation={attention}: cannot be used here ({reason}); type model.attn_implementation=sdpa"
    return f"model.name_or_path={spec.name_or_path}: cannot be loaded ({reason}); restore it, or choose another model"

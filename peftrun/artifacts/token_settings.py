"""What a run changes in its base model's tokenizer: chat template, special tokens, new tokens. Light.

The base model's folder stays as it is; `models.retokenized_base` makes the folder that the run uses.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import CHAT_TEMPLATE
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.io import atomic_files
from peftrun.system.packages import find_package_dir

SETTINGS_FILE = ".token_settings.json"  # in a folder of `models.retokenized_base`; hidden, so that no merge copies it
MODEL_FILES = ("config.json", "generation_config.json", SETTINGS_FILE)  # the other files that are written there
KEYS = ("chat_template", "special_tokens", "new_tokens", "pad_vocab_to_multiple_of")  # of config group `model`


@dataclass(frozen=True)
class TokenSettings:
    """What differs from the base model's own tokenizer.

    Attributes:
        chat_template: the text of the template; None: the base model's own.
        special_tokens: role (`eos`, `pad`, …) → token.
        new_tokens: tokens to add to the vocabulary, in the order of their ids.
        multiple: the number of embeddings is rounded up to a multiple of this.
    """

    chat_template: str | None
    special_tokens: dict[str, str]
    new_tokens: tuple[str, ...]
    multiple: int

    @property
    def changes_tokenizer(self) -> bool:
        """Whether more than the chat template differs."""
        return bool(self.special_tokens or self.new_tokens)

    def digest_tokenizer(self, base: str) -> str:
        """Digest of the tokenizer with these tokens. `base`: that of the base model's own."""
        if not self.changes_tokenizer:
            return base
        values = [base, sorted(self.special_tokens.items()), self.new_tokens]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For records and `peftrun.json`: values of KEYS, in which the template is the file beside the adapter."""
        values = {
            "chat_template": None if self.chat_template is None else CHAT_TEMPLATE,
            "special_tokens": self.special_tokens,
            "new_tokens": list(self.new_tokens),
            "pad_vocab_to_multiple_of": self.multiple if self.multiple > 1 else None,
        }
        return {key: value for key, value in values.items() if value}


def read_token_settings(model: ModelSpec) -> TokenSettings | None:
    """The settings of a run; None if its base model's own tokenizer is used as it is.

    Raises: ModelError: the chat template's file cannot be read.
    """
    template, new = model.chat_template, tuple(model.new_tokens or ())
    special = {str(role): token for role, token in (model.special_tokens or {}).items()}
    if template is None and not special and not new:
        return None
    text = None if template is None else read_chat_template(template)
    return TokenSettings(text, special, new, model.pad_vocab_to_multiple_of or 1)


def list_template_files() -> dict[str, Path]:
    """Name → file of each chat template that is known by name: peftrun's own, and TRL's."""
    folders = [folder / "chat_templates" for folder in (find_package_dir("trl"), Path(__file__).parent) if folder]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.jinja"))}


def read_chat_template(value: str) -> str:
    """The text of a template. `value`: as typed, a name or a file. Raises: ModelError: there is no such file."""
    file = list_template_files().get(value, Path(value).expanduser())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template={value}: cannot be read ({error}); name a Jinja file") from error


def write_settings(folder: Path, base: Path, settings: TokenSettings) -> None:
    """Records in a folder of `models.retokenized_base` which base model's it is, with which settings."""
    values = vars(settings) | {"base": str(base)}
    atomic_files.write_json(folder / SETTINGS_FILE, values)


def read_settings(folder: Path) -> tuple[Path, TokenSettings] | None:
    """The base model's own folder, and the settings; None for a folder that is a base model's own."""
    if not (folder / SETTINGS_FILE).is_file():
        return None
    values = atomic_files.read_json(folder / SETTINGS_FILE)
    base = Path(values.pop("base"))
    return base, TokenSettings(**values | {"new_tokens": tuple(values["new_tokens"])})


def copy_tokenizer_files(base: Path, folder: Path) -> None:
    """Copies what a folder of `models.retokenized_base` has of its own beside the weights: tokenizer and chat template."""
    for file in base.iterdir() if (base / SETTINGS_FILE).is_file() else ():
        if not file.is_symlink() and file.is_file() and file.suffix != ".safetensors" and file.name not in MODEL_FILES:
            shutil.copyfile(file, folder / file.name)

"""Files of a base model: downloads from the Hub, and files that must not be in its folder. Light."""

import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.config.paths import cache_dir
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError

CONNECT_TIMEOUT = 3  # seconds
TEXT_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.spm"]  # everything but weights
HUB_FILES = [*TEXT_FILES, "*.safetensors"]


def download_base(spec: ModelSpec, weights: bool = True) -> Path:
    """The base model's folder in the local cache, at its revision, with or without weights; Python files only with trust_remote_code.

    Raises: ModelError: it does not exist, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    key = f"model.name_or_path={spec.name_or_path}"
    patterns = [*(HUB_FILES if weights else TEXT_FILES), *(["*.py"] if spec.trust_remote_code else [])]
    try:
        # without adapter files, which transformers would load silently: see find_stray_adapter
        folder = snapshot_download(
            spec.name_or_path, revision=spec.revision, allow_patterns=patterns, ignore_patterns=["adapter_*"]
        )
        return Path(folder)
    except LocalEntryNotFoundError as error:
        raise ModelError(_explain_unreachable(spec)) from error
    except HFValidationError as error:
        raise ModelError(f"{key}: is neither a folder nor a Hub id (ORG/NAME); type one of them") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{key}: the Hub refused it ({reason}); check the name, the revision and `hf auth login`"
        ) from error


def check_hub_reachable(spec: ModelSpec) -> None:
    """Checks within seconds, before anything heavy is imported, that a base model on the Hub can be downloaded.

    Raises: ModelError: it is not in the local cache, and the Hub does not answer.
    """
    if spec.package or Path(spec.name_or_path).expanduser().exists():
        return
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(spec.name_or_path, "config.json", revision=spec.revision)
    except HFValidationError:  # reported by download_base
        return
    if not isinstance(cached, str) and (constants.HF_HUB_OFFLINE or not _is_reachable(constants.ENDPOINT)):
        raise ModelError(_explain_unreachable(spec))


def _is_reachable(address: str) -> bool:
    """Whether the address accepts connections; behind a proxy this cannot be checked and counts as true."""
    url, connected = urlsplit(address), threading.Event()
    if getproxies():
        return True

    def connect() -> None:
        with (
            suppress(OSError),
            socket.create_connection((url.hostname or "", url.port or 443), timeout=CONNECT_TIMEOUT),
        ):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a thread, since DNS lookups have no timeout
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return connected.is_set()


def _explain_unreachable(spec: ModelSpec) -> str:
    return (
        f"model.name_or_path={spec.name_or_path}: is not in the local cache and the Hub cannot be reached; connect, or download it elsewhere "
        f"(`hf download {spec.name_or_path} --local-dir FOLDER`) and type model=pretrained model.name_or_path=FOLDER"
    )


def converted_gguf_dir(file: Path) -> Path:
    """The folder in the cache for a GGUF file's safetensors, named by the file's hash; it exists once the file is converted."""
    from peftrun.artifacts import fingerprint

    return cache_dir() / "models" / f"{file.stem}-{fingerprint.hash_file_cached(file)[:16]}"


def find_stray_adapter(folder: Path, name: str) -> str | None:
    """Why a folder cannot be a base model: an adapter in it, which transformers would load silently with the base model; else None."""
    if (folder / ADAPTER / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return f"model.name_or_path={name}: is a run with an adapter, not a base; type adapter={name}"
    files = [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / file).is_file()]
    if not files:
        return None
    if not (folder / "config.json").is_file():
        return f"model.name_or_path={name}: is an adapter, not a base; type adapter={name} and name its base"
    return (
        f"model.name_or_path={name}: {' and '.join(files)} of an adapter in it would be loaded with the base; "
        "move them to a folder of their own, and type adapter=THAT_FOLDER to use them"
    )

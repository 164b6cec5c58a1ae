"""Adapters added, replaced and removed while the server answers."""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from peftrun import console
from peftrun.adapters import base_match, hot_swap, mixed_batch
from peftrun.artifacts import adapter_folder
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.checks import serving as serve_checks
from peftrun.errors import AdapterError, PeftrunError
from peftrun.io.atomic_files import read_json
from peftrun.serving import errors
from peftrun.serving.adapter_registry import AdapterRegistry, AdapterVersion
from peftrun.serving.batch import ModelRunner
from peftrun.serving.engine import Engine
from peftrun.serving.requests import LoadLoraRequest


class AdapterManager:
    """Changes what is served. `told`: facts of each change, for the record."""

    def __init__(
        self,
        base: Any,
        computer: ModelRunner,
        engine: Engine,
        versions: AdapterRegistry,
        *,
        plain: torch.Tensor,
        allow_base_mismatch: bool,
    ) -> None:
        self._base, self._runner, self._engine, self._registry = base, computer, engine, versions
        self._plain, self._allow = plain, allow_base_mismatch
        self.told: list[dict[str, Any]] = []

    def validate_adapter(self, wish: LoadLoraRequest) -> Path:
        """The adapter's folder, after all checks that need no model; run it where it may take time.

        Raises: ApiFault: the name is taken or cannot be one, or the folder holds no adapter that can be served on this base.
        """
        name, known = wish.lora_name, self._registry
        if name in known.base_names:
            raise errors.invalid_request(f"{name} is the base's own name; give the adapter another", "lora_name")
        if known.find_version(name) and not wish.load_inplace:
            raise errors.invalid_request(
                f"The lora adapter '{name}' has already been loaded. Set load_inplace to true to replace it.",
                "lora_name",
            )
        if not adapter_folder.SERVED_NAME.fullmatch(name):
            raise errors.invalid_request(
                f"{name!r} {adapter_folder.NAME_RULE}, with single dots between them.", "lora_name"
            )
        with _convert_to_api_error("lora_path"):
            folder = adapter_folder.resolve_adapter_dir(wish.lora_path, name)
            check_servable(folder, name)
            base_match.check_base_match(
                self._base.name, self._base.fingerprint, folder, self._allow, lambda: self._base.tokenizer
            )
        return folder

    async def serve_adapter(self, wish: LoadLoraRequest, folder: Path) -> dict[str, Any]:
        """Serves the adapter from now on, once its load is proved; what the proof found. Raises: ApiFault: it does not fit."""
        with _convert_to_api_error("lora_path"):
            version, proof = await asyncio.wrap_future(
                self._engine.apply_change(self._load_in_stages(wish.lora_name, folder))
            )
        console.print_info(f"adapter {version.name}: {folder} loaded and proved ({proof.tensors} tensors)")
        self.told.append({"served": version.name, "as": version.internal_name, **proof.as_dict()})
        shown = proof.as_dict() | {
            "name": version.name
        }  # not the one that it has inside, beside the version it replaces
        return {key: value for key, value in shown.items() if key != "delta_norms"}

    def remove_adapter(self, name: str) -> None:
        """Serves the adapter no longer; requests in flight finish. Raises: ApiFault: there is none of this name."""
        if self._registry.remove_adapter(name) is None:
            raise errors.ApiError(
                404, f"The lora adapter '{name}' cannot be found.", errors.INVALID, "model_not_found", "lora_name"
            )
        self.told.append({"removed": name})
        self._engine.notify_thread()

    def _load_in_stages(self, name: str, folder: Path) -> Generator[None, None, tuple[AdapterVersion, Any]]:
        """Stages for the engine's thread."""
        computer = self._runner
        internal = self._registry.make_internal_name(name, getattr(computer.net, "peft_config", {}))
        stages = hot_swap.hot_add(self._base, computer.net, internal, folder, self._plain)
        while True:
            try:
                computer.net = next(stages)
            except StopIteration as end:
                proof = end.value
                break
            yield
        config = computer.net.peft_config[internal]
        version = AdapterVersion(name, internal, str(folder), mixed_batch.why_exclusive(name, config))
        self._registry.serve_adapter(version)
        return version, proof


def check_servable(folder: Path, name: str) -> None:
    """Raises: AdapterError: the adapter cannot be served beside others."""
    reason = serve_checks.explain_unservable(read_json(folder / ADAPTER_CONFIG))
    if reason:
        raise AdapterError(f"adapter.{name}={folder}: {reason}")


@contextmanager
def _convert_to_api_error(param: str) -> Iterator[None]:
    """What is at fault with an adapter, as an answer to who sent it."""
    try:
        yield
    except PeftrunError as error:
        raise errors.invalid_request(" ".join(error.lines), param) from error

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
from peftrun.serving.adapter_registry import Version, Versions
from peftrun.serving.batch import Computer
from peftrun.serving.engine import Engine
from peftrun.serving.requests import LoadWish


class Swapper:
    """Changes what is served. `told`: facts of each change, for the record."""

    def __init__(
        self,
        base: Any,
        computer: Computer,
        engine: Engine,
        versions: Versions,
        *,
        plain: torch.Tensor,
        allow_base_mismatch: bool,
    ) -> None:
        self._base, self._computer, self._engine, self._versions = base, computer, engine, versions
        self._plain, self._allow = plain, allow_base_mismatch
        self.told: list[dict[str, Any]] = []

    def looked_at(self, wish: LoadWish) -> Path:
        """The adapter's folder, after all checks that need no model; run it where it may take time.

        Raises: ApiFault: the name is taken or cannot be one, or the folder holds no adapter that can be served on this base.
        """
        name, known = wish.lora_name, self._versions
        if name in known.base_names:
            raise errors.invalid(f"{name} is the base's own name; give the adapter another", "lora_name")
        if known.find(name) and not wish.load_inplace:
            raise errors.invalid(
                f"The lora adapter '{name}' has already been loaded. Set load_inplace to true to replace it.",
                "lora_name",
            )
        if not adapter_folder.SERVED_NAME.fullmatch(name):
            raise errors.invalid(f"{name!r} {adapter_folder.NAME_RULE}, with single dots between them.", "lora_name")
        with _as_fault("lora_path"):
            folder = adapter_folder.locate(wish.lora_path, name)
            check(folder, name)
            base_match.check(self._base.name, self._base.fingerprint, folder, self._allow, lambda: self._base.tokenizer)
        return folder

    async def put(self, wish: LoadWish, folder: Path) -> dict[str, Any]:
        """Serves the adapter from now on, once its load is proved; what the proof found. Raises: ApiFault: it does not fit."""
        with _as_fault("lora_path"):
            version, proof = await asyncio.wrap_future(self._engine.change(self._adding(wish.lora_name, folder)))
        console.say(f"adapter {version.name}: {folder} loaded and proved ({proof.tensors} tensors)")
        self.told.append({"served": version.name, "as": version.internal, **proof.as_dict()})
        shown = proof.as_dict() | {
            "name": version.name
        }  # not the one that it has inside, beside the version it replaces
        return {key: value for key, value in shown.items() if key != "delta_norms"}

    def removed(self, name: str) -> None:
        """Serves the adapter no longer; requests in flight finish. Raises: ApiFault: there is none of this name."""
        if self._versions.removed(name) is None:
            raise errors.ApiFault(
                404, f"The lora adapter '{name}' cannot be found.", errors.INVALID, "model_not_found", "lora_name"
            )
        self.told.append({"removed": name})
        self._engine.wake()

    def _adding(self, name: str, folder: Path) -> Generator[None, None, tuple[Version, Any]]:
        """Stages for the engine's thread."""
        computer = self._computer
        internal = self._versions.internal_for(name, getattr(computer.net, "peft_config", {}))
        stages = hot_swap.with_adapter(self._base, computer.net, internal, folder, self._plain)
        while True:
            try:
                computer.net = next(stages)
            except StopIteration as end:
                proof = end.value
                break
            yield
        config = computer.net.peft_config[internal]
        version = Version(name, internal, str(folder), mixed_batch.alone(name, config))
        self._versions.put(version)
        return version, proof


def check(folder: Path, name: str) -> None:
    """Raises: AdapterError: the adapter cannot be served beside others."""
    reason = serve_checks.unservable(read_json(folder / ADAPTER_CONFIG))
    if reason:
        raise AdapterError(f"adapter.{name}={folder}: {reason}")


@contextmanager
def _as_fault(param: str) -> Iterator[None]:
    """What is at fault with an adapter, as an answer to who sent it."""
    try:
        yield
    except PeftrunError as error:
        raise errors.invalid(" ".join(error.lines), param) from error

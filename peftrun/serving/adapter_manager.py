"""Loads, replaces and removes adapters while the server answers."""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from peftrun import console
from peftrun.adapters import base_match, hot_swap, mixed_batch
from peftrun.artifacts import adapter_folder, hub_download
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.checks import serving as serve_checks
from peftrun.errors import AdapterError, PeftrunError
from peftrun.serving import errors
from peftrun.serving.adapter_registry import AdapterRegistry, AdapterVersion
from peftrun.serving.batch import ModelRunner
from peftrun.serving.engine import Engine
from peftrun.serving.requests import LoadLoraRequest


class AdapterManager:
    """Changes which adapters are served.

    Args: plain: the base model's logits on the probes, to which those of a loaded adapter are compared.
    Attributes: changes: facts of each change, for the record.
    """

    def __init__(
        self,
        base: Any,
        runner: ModelRunner,
        engine: Engine,
        registry: AdapterRegistry,
        *,
        plain: torch.Tensor,
        allow_base_mismatch: bool,
    ) -> None:
        self._base, self._runner, self._engine, self._registry = base, runner, engine, registry
        self._plain, self._allow_base_mismatch = plain, allow_base_mismatch
        self.changes: list[dict[str, Any]] = []

    def validate_adapter(self, request: LoadLoraRequest) -> AdapterRef:
        """The adapter, after all checks that need no model. Reads files, and the Hub for an id there, so call it outside the event loop.

        Raises: ApiError: the name is in use or invalid, or the folder has no adapter that can be served on this base model.
        """
        name = request.lora_name
        if name in self._registry.base_names:
            raise errors.invalid_request(f"{name} is the base's own name; give the adapter another", "lora_name")
        if self._registry.find_version(name) and not request.load_inplace:
            raise errors.invalid_request(
                f"The lora adapter '{name}' has already been loaded. Set load_inplace to true to replace it.",
                "lora_name",
            )
        if not adapter_folder.SERVED_NAME.fullmatch(name):
            raise errors.invalid_request(
                f"{name!r} {adapter_folder.NAME_RULE}, with single dots between them.", "lora_name"
            )
        with _convert_to_api_error("lora_path"):
            adapter = adapter_folder.resolve_adapter(hub_download.pin_adapter(request.lora_path, name), name)
            reason = serve_checks.explain_unservable(adapter.config)
            if reason:
                raise AdapterError(f"adapter.{name}={adapter.label}: {reason}")
            base_match.check_base_match(
                self._base.name,
                self._base.fingerprint,
                adapter,
                self._allow_base_mismatch,
                lambda: self._base.tokenizer,
            )
        return adapter

    async def serve_adapter(self, adapter: AdapterRef) -> dict[str, Any]:
        """Loads the adapter and serves it once the load is verified; the facts of the proof.

        Raises: ApiError: the adapter does not fit the base model, or its load cannot be verified.
        """
        with _convert_to_api_error("lora_path"):
            version, proof = await asyncio.wrap_future(self._engine.apply_change(self._load_in_stages(adapter)))
        console.print_info(f"adapter {version.name}: {adapter.label} loaded and proved ({proof.tensors} tensors)")
        self.changes.append({"served": version.name, "as": version.internal_name, **proof.as_dict()})
        # Clients know the adapter by its served name; the internal one tells it from the version that it replaces.
        facts = proof.as_dict() | {"name": version.name}
        return {key: value for key, value in facts.items() if key != "delta_norms"}

    def remove_adapter(self, name: str) -> None:
        """Stops serving the adapter; running requests finish. Raises: ApiError: there is no adapter of this name."""
        if self._registry.remove_adapter(name) is None:
            raise errors.ApiError(
                404, f"The lora adapter '{name}' cannot be found.", errors.INVALID, "model_not_found", "lora_name"
            )
        self.changes.append({"removed": name})
        self._engine.notify_thread()

    def _load_in_stages(self, adapter: AdapterRef) -> Generator[None, None, tuple[AdapterVersion, Any]]:
        """Loads the adapter in the engine's thread; it yields after each stage, so that answers go on in between."""
        runner, name = self._runner, adapter.name
        internal_name = self._registry.make_internal_name(name, getattr(runner.net, "peft_config", {}))
        stages = hot_swap.hot_add(self._base, runner.net, replace(adapter, name=internal_name), self._plain)
        while True:
            try:
                runner.net = next(stages)
            except StopIteration as end:
                proof = end.value
                break
            yield
        config = runner.net.peft_config[internal_name]
        version = AdapterVersion(name, internal_name, str(adapter.folder), mixed_batch.why_exclusive(name, config))
        self._registry.serve_adapter(version)
        return version, proof


@contextmanager
def _convert_to_api_error(param: str) -> Iterator[None]:
    """Turns a PeftrunError inside into status 400 for the client that sent `param`."""
    try:
        yield
    except PeftrunError as error:
        raise errors.invalid_request(" ".join(error.lines), param) from error

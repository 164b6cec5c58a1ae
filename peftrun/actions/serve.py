"""Serve OpenAI's HTTP API: one base model in memory, each adapter under a model name of its own."""

import os
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.adapters import load, mixed_batch, probes
from peftrun.artifacts import adapter_folder
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.config.schema.actions import ServeAction
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_metrics
from peftrun.models import base as base_models
from peftrun.models import base_cache, placement
from peftrun.result import RunResult
from peftrun.serving import adapter_manager, model_support, routes, server
from peftrun.serving.adapter_registry import AdapterRegistry, AdapterVersion
from peftrun.serving.batch import ModelRunner
from peftrun.serving.engine import Engine
from peftrun.serving.metrics import Metrics
from peftrun.serving.middleware import RequestMiddleware
from peftrun.serving.service import Service
from peftrun.system import sockets


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Serves until a signal stops it; the record then holds the totals and every adapter that was loaded or unloaded."""
    action = spec.action
    assert isinstance(action, ServeAction)
    # The port is taken before the base model is loaded: a port in use should fail at once.
    with server.bind_socket(action.host, action.port) as server_socket:
        run_device = placement.resolve_run_device(spec)
        console.print_info(run_device.note)
        model_support.check_config(base_models.resolve_base_dir(spec.model), spec.model)
        base = base_cache.load_cached_base(spec.model, run_device)
        model_support.check_loaded(base)
        base_logits = probes.compute_probe_logits(base.model, base.tokenizer)
        net: Any = base.model
        proofs: list[load.LoadProof] = []
        adapters = adapter_folder.resolve_adapters(spec.adapter)
        if adapters:
            net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
        versions = []
        for name, adapter in adapters.items():
            reason = mixed_batch.why_exclusive(name, net.peft_config[name])
            versions.append(AdapterVersion(name, name, str(adapter.folder), reason))
            if reason and len(adapters) > 1:
                console.print_info(f"{reason}: its rows are answered in separate batches")
        registry = AdapterRegistry(base.name, versions)
        service, manager = _build_service(base, net, registry, spec, base_logits)
        _run_server(action, server_socket, service, manager)
    facts: dict[str, Any] = {
        "base": base.describe(),
        "device": run_device.note,
        "adapters": [proof.as_dict() for proof in proofs],
        "swaps": manager.changes,
    }
    # Totals over all adapters and outcomes.
    samples = [sample for family in service.metrics.registry.collect() for sample in family.samples]
    counters = {
        "peftrun_requests_total": "requests",
        "peftrun_prompt_tokens_total": "prompt_tokens",
        "peftrun_generated_tokens_total": "generated_tokens",
    }
    totals = {
        key: int(sum(sample.value for sample in samples if sample.name == name)) for name, key in counters.items()
    }
    return RunResult(out_dir, facts, metrics=totals, summary=[("served", format_metrics(totals))])


def _build_service(
    base: Any, net: Any, registry: AdapterRegistry, spec: RunSpec, base_logits: Any
) -> tuple[Service, adapter_manager.AdapterManager]:
    assert isinstance(spec.action, ServeAction)
    metrics = Metrics()
    metrics.adapters.set(len(registry.list_adapters()))
    runner = ModelRunner(net, base.tokenizer.pad_token_id)
    engine = Engine(runner, registry, metrics, spec.action.max_batch_size, spec.action.max_waiting)
    # The base model's probe logits let the manager verify that an adapter loaded later has an effect.
    manager = adapter_manager.AdapterManager(
        base, runner, engine, registry, plain=base_logits, allow_base_mismatch=spec.allow_base_mismatch
    )
    return Service(base, engine, registry, metrics, spec.action, task=spec.task), manager


def _run_server(
    action: ServeAction, server_socket: Any, service: Service, manager: adapter_manager.AdapterManager
) -> None:
    key = os.environ[action.api_key_env] if action.api_key_env else None
    is_local = sockets.is_this_machine(action.host)
    if key is None and not is_local:
        console.print_warning(
            f"action.host={action.host}: anyone who can reach this address can send requests, and no key is needed; type action.api_key_env=VARIABLE"
        )
    # Loading adapters reads paths of this machine, so other machines may do it only with a key.
    app = RequestMiddleware(
        routes.create_app(service, manager, may_swap=is_local or key is not None), action, key, service.metrics
    )

    def print_address() -> None:
        # The base model answers under two names, its own and BASE_ADAPTER_NAME; the shorter one is shown.
        names = [
            name for name in service.versions.list_names() if name != service.base.name or name == BASE_ADAPTER_NAME
        ]
        console.print_result(f"serving {', '.join(names)} on {server.format_url(server_socket)}")

    service.engine.start()
    try:
        server.run(app, server_socket, service, print_address)
    finally:
        service.engine.close(timeout=action.shutdown_timeout)

"""Answer over HTTP as OpenAI's API does: one base, each adapter a model of its own."""

import os
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.adapters import load, mixed_batch, probes
from peftrun.artifacts import adapter_folder
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.config.schema.actions import ServeAction
from peftrun.config.schema.run import RunSpec
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
    """Serves until it is told to stop; the record then holds what was served, and each adapter that came and went."""
    action = spec.action
    assert isinstance(action, ServeAction)
    with server.bind_socket(action.host, action.port) as listening:
        place = placement.resolve_run_device(spec)
        console.print_info(place.note)
        model_support.check_config(base_models.resolve_base_dir(spec.model), spec.model)
        base = base_cache.load_cached_base(spec.model, place)
        model_support.check_loaded(base)
        plain = probes.compute_probe_logits(base.model, base.tokenizer)
        net: Any = base.model
        proofs: list[load.LoadProof] = []
        if spec.adapter:
            net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        versions = AdapterRegistry(base.name, _build_versions(net, spec.adapter))
        service, swapper = _build_service(base, net, versions, spec, plain)
        _run_server(action, listening, service, swapper)
    found = [proof.as_dict() for proof in proofs]
    facts: dict[str, Any] = {"base": base.describe(), "device": place.note, "adapters": found, "swaps": swapper.told}
    return RunResult(out_dir, facts, metrics=_sum_counters(service.metrics), summary=_build_summary(service.metrics))


def _build_versions(net: Any, paths: dict[str, str]) -> list[AdapterVersion]:
    """What PEFT has loaded, under the names it was given."""
    found = []
    for name, path in paths.items():
        folder = adapter_folder.resolve_adapter_dir(path, name)
        found.append(AdapterVersion(name, name, str(folder), mixed_batch.why_exclusive(name, net.peft_config[name])))
    for one in found:
        if one.alone and len(found) > 1:
            console.print_info(f"{one.alone}: its rows are answered in batches of their own")
    return found


def _build_service(
    base: Any, net: Any, versions: AdapterRegistry, spec: RunSpec, plain: Any
) -> tuple[Service, adapter_manager.AdapterManager]:
    assert isinstance(spec.action, ServeAction)
    watch = Metrics()
    watch.adapters.set(len(versions.list_adapters()))
    computer = ModelRunner(net, base.tokenizer.pad_token_id)
    engine = Engine(computer, versions, watch, spec.action.max_batch_size, spec.action.max_waiting)
    swapper = adapter_manager.AdapterManager(
        base, computer, engine, versions, plain=plain, allow_base_mismatch=spec.allow_base_mismatch
    )
    return Service(base, engine, versions, watch, spec.action, task=spec.task), swapper


def _run_server(action: ServeAction, listening: Any, service: Service, swapper: adapter_manager.AdapterManager) -> None:
    key = os.environ[action.api_key_env] if action.api_key_env else None
    private = sockets.is_this_machine(action.host)
    if key is None and not private:
        console.print_warning(
            f"action.host={action.host}: whoever reaches this address may ask, and no key is needed; type action.api_key_env=VARIABLE"
        )
    app = RequestMiddleware(
        routes.create_app(service, swapper, may_swap=private or key is not None), action, key, service.metrics
    )
    service.engine.start()
    try:
        server.run(app, listening, service, lambda: _show_address(listening, service))
    finally:
        service.engine.close(timeout=action.shutdown_timeout)


def _show_address(listening: Any, service: Service) -> None:
    names = service.versions.list_names()
    console.print_result(
        f"serving {', '.join(name for name in names if name != service.base.name or name == BASE_ADAPTER_NAME)} on {server.format_url(listening)}"
    )


def _sum_counters(watch: Metrics) -> dict[str, Any]:
    """Totals of what was answered."""
    samples = [one for family in watch.registry.collect() for one in family.samples]
    wanted = {"peftrun_requests_total": "requests", "peftrun_prompt_tokens_total": "prompt_tokens", "peftrun_generated_tokens_total": "generated_tokens"}  # fmt: skip
    return {key: int(sum(one.value for one in samples if one.name == name)) for name, key in wanted.items()}


def _build_summary(watch: Metrics) -> list[tuple[str, str]]:
    return [("served", console.format_figures(_sum_counters(watch)))]

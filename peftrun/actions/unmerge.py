"""Subtract an adapter from a merged model, in float32, and compare the result with the base model's fingerprint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.adapters import meta_model
from peftrun.adapters.merge import provenance, streaming
from peftrun.artifacts import adapter_folder, base_files, fingerprint
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import BASE
from peftrun.config.schema.actions import UnmergeAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import AdapterError
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files, safetensors_header, safetensors_stream
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the model before the merge to `action.output_dir`, or to `base/` in the run folder.

    Raises: AdapterError: another adapter was merged, or this one replaced values that are stored in neither file.
    """
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, UnmergeAction)
    merged = base_models.resolve_base_dir(spec.model)
    base_models.check_full_precision(merged, base_files.format_base_name(spec.model))
    name = spec.active_adapter or next(iter(spec.adapter))
    adapter = adapter_folder.resolve_adapter(spec.adapter[name], name)
    merge_record = provenance.read_provenance(merged)
    if merge_record is None:
        _check_not_base(spec, merged, adapter)
        console.print_warning(f"{merged} does not record which adapter was merged into it, so this cannot be checked")
    elif merge_record["adapter_sha256"] != atomic_files.hash_file(adapter.weights):
        raise AdapterError(
            f"{adapter.label}: is not the adapter that was merged into {merged} (adapter_model.safetensors "
            f"{merge_record['adapter_sha256'][:12]}); name that one"
        )
    dtype = (merge_record or {}).get("base_dtype") if action.dtype == "auto" else action.dtype
    base_dir = Path(action.output_dir).expanduser() if action.output_dir else out_dir / BASE
    with atomic_files.create_folder(base_dir) as folder:
        net = meta_model.build_on_meta(merged, spec.model, adapter)
        try:
            streaming.begin_merged(
                net, name, merged, folder, device.parse_dtype(dtype) if dtype else None, undo=True
            ).write_rest()
        except streaming.NotStreamableError as reason:
            raise AdapterError(
                f"{adapter.label}: this merge cannot be undone: {reason}; keep the base model it was made for"
            ) from reason
        # The base model's fingerprint, as recorded at the merge or in the adapter's peftrun.json.
        metadata = merge_record or adapter.metadata
        expected = str(metadata["base"]["fingerprint"]["weights"]) if metadata else None
        figures = _compare_with_base(folder, merged, expected)
    facts = {
        "merged": {"name": str(merged), "fingerprint": fingerprint.fingerprint_model(merged).as_dict()},
        "unmerge": figures,
    }
    return RunResult(out_dir, facts, artifacts=[base_dir], summary=_build_summary(base_dir, figures), next_commands=[
        f"peftrun action=reload model=pretrained model.name_or_path={console.shorten_path(base_dir)} adapter={adapter.path}"
    ])  # fmt: skip


def _check_not_base(spec: RunSpec, folder: Path, adapter: AdapterRef) -> None:
    """Raises: AdapterError: this is the base model that the adapter was made for, as it is where no other model is typed."""
    recorded = adapter.metadata["base"]["fingerprint"]["weights"] if adapter.metadata else None
    if recorded == fingerprint.fingerprint_model(folder).weights:
        raise AdapterError(
            f"model.name_or_path={spec.model.name_or_path}: is the base model that {adapter.label} was made for, and no adapter is merged into it; "
            "type model=pretrained model.name_or_path=MERGED_FOLDER"
        )


def _compare_with_base(folder: Path, merged: Path, expected: str | None) -> dict[str, Any]:
    """Whether the weights equal the base model's bit for bit, and a bound on the error of each value if they do not.

    The merge rounded each sum once to the merged files' dtype and the sum here is rounded once more, so a value is
    off by at most half a unit in the last place of each, and of the float32 between.
    """
    actual = fingerprint.fingerprint_model(folder).weights
    merged_tensors = _list_tensors(merged)
    bound, changed = 0.0, 0
    for name, tensor in _list_tensors(folder).items():
        before = merged_tensors[name]
        values, merged_values = tensor.read_float(), before.read_float()  # float32, one pair in memory at a time
        if not values.equal(merged_values):
            changed += 1
            bound = max(bound, _bound_rounding_error(values, tensor) + _bound_rounding_error(merged_values, before))
    exact = None if expected is None else actual == expected
    return {"exact": exact, "fingerprint": actual, "expected": expected, "changed": changed,
            "max_error_bound": 0.0 if exact else bound}  # fmt: skip


def _list_tensors(folder: Path) -> dict[str, safetensors_stream.StoredTensor]:
    return {
        tensor.entry.name: tensor
        for file in safetensors_header.list_weight_files(folder)
        for tensor in safetensors_stream.list_stored_tensors(file)
    }


def _bound_rounding_error(values: Any, stored: safetensors_stream.StoredTensor) -> float:
    """Largest error of rounding to float32 and then to the stored dtype, over all values."""
    # Rounding to nearest is off by at most eps/2 relative to the value, so the value of largest magnitude gives the bound.
    return (
        float(values.abs().max())
        * (safetensors_stream.dtype_eps(stored.dtype) + safetensors_stream.dtype_eps(values.dtype))
        / 2
    )


def _build_summary(target: Path, figures: dict[str, Any]) -> list[tuple[str, str]]:
    bound = f"no value is off by more than {figures['max_error_bound']:.2g}"
    verdict = {
        True: "bit for bit: the fingerprints are equal",
        False: f"not bit for bit, the merge rounded; {bound}",
        None: f"not known, its fingerprint was not recorded; {bound}",
    }[figures["exact"]]
    if not figures["exact"]:
        console.print_warning(f"the base model is {verdict}")
    size = format_bytes(atomic_files.measure_size(target))
    return [
        ("unmerged", f"{figures['changed']} tensors, {size}: {console.shorten_path(target)}"),
        ("equals the base model", verdict),
    ]

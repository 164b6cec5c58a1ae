"""Take an adapter out of a merged model again, in float32, and hold the result against the base's fingerprint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.adapters import meta_model
from peftrun.adapters.merge import provenance, streaming
from peftrun.artifacts import adapter_folder, fingerprint
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS, BASE
from peftrun.config.schema.actions import UnmergeAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import AdapterError
from peftrun.io import atomic_files, safetensors_stream
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The model before the merge in `action.output_dir`, or `base/` in the run folder.

    Raises: AdapterError: another adapter was merged, or this one replaced values that are kept nowhere.
    """
    spec = replace(spec, model=base_models.dequantize_spec(spec.model))
    action = spec.action
    assert isinstance(action, UnmergeAction)
    merged = base_models.resolve_base_dir(spec.model)
    base_models.check_full_precision(merged, base_models.get_portable_name(spec.model))
    name = spec.active or next(iter(spec.adapter))
    adapter = adapter_folder.resolve_adapter_dir(spec.adapter[name], name)
    noted = provenance.read_provenance(merged)
    _check_merged_adapter(noted, merged, adapter)
    dtype = (noted or {}).get("base_dtype") if action.dtype == "auto" else action.dtype
    target = Path(action.output_dir).expanduser() if action.output_dir else out_dir / BASE
    with atomic_files.create_folder(target) as folder:
        net = meta_model.build_on_meta(merged, spec.model, spec.adapter[name], name)
        try:
            streaming.write_merged(net, name, merged, folder, device.parse_dtype(dtype) if dtype else None, undo=True)
        except streaming.NotStreamableError as reason:
            raise AdapterError(
                f"{adapter}: this merge cannot be undone: {reason}; keep the base it was made for"
            ) from reason
        figures = _compare_with_base(folder, merged, _find_expected_fingerprint(noted, adapter))
    facts = {
        "merged": {"name": str(merged), "fingerprint": fingerprint.fingerprint_model(merged).as_dict()},
        "unmerge": figures,
    }
    return RunResult(out_dir, facts, artifacts=[target], summary=_build_summary(target, figures), next_commands=[
        f"peftrun action=reload model=pretrained model.name_or_path={console.shorten_path(target)} adapter={spec.adapter[name]}"
    ])  # fmt: skip


def _check_merged_adapter(noted: dict[str, Any] | None, merged: Path, adapter: Path) -> None:
    if noted is None:
        console.print_warning(
            f"{merged} does not say which adapter was merged into it: that it was this one cannot be checked"
        )
    elif noted["adapter_sha256"] != atomic_files.hash_file(adapter / ADAPTER_WEIGHTS):
        raise AdapterError(
            f"{adapter}: is not the adapter that was merged into {merged} (adapter_model.safetensors "
            f"{noted['adapter_sha256'][:12]}); name that one"
        )


def _find_expected_fingerprint(noted: dict[str, Any] | None, adapter: Path) -> str | None:
    """The fingerprint of the base's weights, as noted at the merge or beside the adapter."""
    known = noted or adapter_folder.read_peftrun_metadata(adapter)
    return str(known["base"]["fingerprint"]["weights"]) if known else None


def _compare_with_base(folder: Path, merged: Path, wanted: str | None) -> dict[str, Any]:
    """Whether the weights are the base's to the last bit; and how far one can be from it at most.

    The merge rounded each sum once to the merged files' dtype and the sum here is rounded once more, so a value is
    off by at most half a unit in the last place of each, and of the float32 between.
    """
    found = fingerprint.fingerprint_model(folder).weights
    before = {
        one.entry.name: one
        for file in safetensors_stream.list_weight_files(merged)
        for one in safetensors_stream.list_stored_tensors(file)
    }
    bound, changed = 0.0, 0
    for one in (
        one
        for file in safetensors_stream.list_weight_files(folder)
        for one in safetensors_stream.list_stored_tensors(file)
    ):
        values, old = one.read_float(), before[one.entry.name].read_float()
        if not values.equal(old):
            changed += 1
            bound = max(bound, _bound_rounding_error(values, one) + _bound_rounding_error(old, before[one.entry.name]))
    exact = None if wanted is None else found == wanted
    return {"exact": exact, "fingerprint": found, "expected": wanted, "changed": changed,
            "max_error_bound": 0.0 if exact else bound}  # fmt: skip


def _bound_rounding_error(values: Any, stored: safetensors_stream.StoredTensor) -> float:
    """What rounding to float32 and then to the stored dtype can take from the largest value."""
    return (
        float(values.abs().max())
        * (safetensors_stream.dtype_eps(stored.dtype) + safetensors_stream.dtype_eps(values.dtype))
        / 2
    )


def _build_summary(target: Path, figures: dict[str, Any]) -> list[tuple[str, str]]:
    bound = f"no value is off by more than {figures['max_error_bound']:.2g}"
    said = {
        True: "bit for bit: its fingerprint is the base's",
        False: f"not bit for bit, the merge rounded; {bound}",
        None: f"not known, no fingerprint of it was kept; {bound}",
    }[figures["exact"]]
    if not figures["exact"]:
        console.print_warning(f"the base is {said}")
    size = console.format_megabytes(atomic_files.measure_size(target))
    return [
        ("unmerged", f"{figures['changed']} tensors, {size}: {console.shorten_path(target)}"),
        ("the base again", said),
    ]

"""What a merge changes in a model's answers: max |Δlogit| between the adapter on its base and the merged files.

For LoRA and the variants that merge otherwise, four families of tiny random models and three dtypes of the base; logits of both are
computed in float32, so that the figure is the merge's alone. Beside it, the share of merged tensors that are, to the
last bit, PEFT's merge in float32 rounded once. The logits of these models are of the order of 1 to 10.

    python benchmarks/merge_exactness.py [--output benchmarks/results/merge_exactness.md]
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the very cases that the tests hold to the last bit


def main() -> None:
    """Measures and writes."""
    from merge_cases import FAMILIES
    from test_merge_matrix import DTYPES, METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "merge_exactness.md")
    output, where = parser.parse_args().output, report.machine()
    figures: dict[str, Any] = {}
    rows = []
    for method in METHODS:
        for family in FAMILIES:
            found = [measured(family, method, dtype) for dtype in DTYPES]
            figures |= {f"{method} {family} {dtype}": one for dtype, one in zip(DTYPES, found, strict=True)}
            rows.append([method, family, *(said(one) for one in found)])
    intro = "max |Δlogit| by the dtype of the base's files, and the share of tensors equal to PEFT's float32 merge rounded once."
    table = report.table(["method", "family", *DTYPES], rows)
    report.write(output, "What a merge changes", [intro, table], {"cases": figures}, where)


def measured(family: str, method: str, dtype: str) -> dict[str, float] | None:
    """None where PEFT cannot make the adapter (OLoRA on GPT-2's Conv1D)."""
    from merge_cases import FAMILIES, reference, stored_base, streamed, trained_adapter
    from test_merge_matrix import DTYPES, settings_of

    if (family, method) == ("gpt2", "olora"):
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = stored_base(FAMILIES[family], folder, DTYPES[dtype], shard="40KB")
        adapter = trained_adapter(FAMILIES[family], base, folder, settings_of(method))
        expected, adapted = reference(FAMILIES[family], base, adapter)
        found, merged = streamed(FAMILIES[family], base, adapter, folder / "merged")
    equal = [value.to(found[key].dtype).equal(found[key]) for key, value in expected.items()]
    return {"max_logit_difference": float((adapted - merged).abs().max()), "equal": sum(equal) / len(equal)}


def said(one: dict[str, float] | None) -> str:
    """One cell."""
    return f"{one['max_logit_difference']:.1e} ({one['equal']:.0%} equal)" if one else "refused"


if __name__ == "__main__":
    main()

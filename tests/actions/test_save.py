"""action=save: all adapters or those named, cast, each whole; a fresh one where none is given."""

import json

import torch
from safetensors.torch import load_file


def adapter(outcome):
    assert outcome.code == 0, outcome.err
    return outcome.run_dir / "adapter"


def test_saved_again_is_the_same_adapter(cli, trained, llama, on_tiny):
    again = adapter(cli(*on_tiny(llama), "action=save", f"adapter={trained}"))
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (trained / "adapter", again))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_cast_adapter_has_the_dtype_and_still_proves(cli, trained, llama, on_tiny):
    again = adapter(cli(*on_tiny(llama), "action=save", f"adapter={trained}", "action.dtype=float16"))
    assert {value.dtype for value in load_file(again / "adapter_model.safetensors").values()} == {torch.float16}
    assert cli(*on_tiny(llama), "action=reload", f"adapter={again}").code == 0


def test_several_are_all_saved_each_in_its_folder(cli, trained, llama, on_tiny):
    both = f"adapter={{one: {trained}, two: {trained}}}"
    saved = adapter(cli(*on_tiny(llama), "action=save", both))
    assert {path.parent.name for path in saved.rglob("adapter_model.safetensors")} == {"one", "two"}
    assert cli(*on_tiny(llama), "action=reload", f"adapter={{two: {saved}}}").code == 0


def test_only_those_named_are_saved(cli, trained, llama, on_tiny):
    both = f"adapter={{one: {trained}, two: {trained}}}"
    saved = adapter(cli(*on_tiny(llama), "action=save", both, "action.adapters=[two]"))
    assert {path.parent.name for path in saved.rglob("adapter_model.safetensors")} == {"two"}


def test_a_fresh_adapter_changes_nothing_and_is_known_as_fresh(cli, llama, on_tiny):
    saved = adapter(cli(*on_tiny(llama), "action=save"))
    assert json.loads((saved / "peftrun.json").read_text())["untrained"] is True
    reloaded = cli(*on_tiny(llama), "action=reload", f"adapter={saved}")
    assert reloaded.code == 0
    assert reloaded.record()["adapters"][0]["effect"]["max_logit_difference"] == 0.0


def test_nothing_of_this_machine_is_written(cli, trained, llama, on_tiny):
    saved = adapter(cli(*on_tiny(llama), "action=save", f"adapter={trained}"))
    assert {path.name for path in saved.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "peftrun.json",
    }
    for path in saved.glob("*.json"):
        assert str(llama) not in path.read_text()

"""Estimates come from files: sizes agree with what training counts, and what is not known is said."""

import json

import pytest
from hydra import compose, initialize_config_dir

from peftrun import config, paths
from peftrun.errors import ConfigError
from peftrun.sweep import bases, groups, pace, planner
from peftrun.sweep.cells import Cell
from peftrun.sweep.planner import Limits


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        yield


def spec(*overrides):
    return config.build(compose("config", overrides=list(overrides)))


def header_only(folder, shapes, **settings):
    """A model folder whose safetensors file has a header and a hole where its bytes would be."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def gpt2_124m(folder):
    shapes = {"wte.weight": [50257, 768], "wpe.weight": [1024, 768], "ln_f.weight": [768]}
    for layer in range(12):
        for name, shape in {
            "attn.c_attn": [768, 2304],
            "attn.c_proj": [768, 768],
            "mlp.c_fc": [768, 3072],
            "mlp.c_proj": [3072, 768],
        }.items():
            shapes[f"h.{layer}.{name}.weight"] = shape
    return header_only(folder, shapes, n_embd=768, n_layer=12, vocab_size=50257)


def on(folder, *overrides):
    return spec("model=pretrained", f"model.name_or_path={folder}", "device=cpu", *overrides)


def test_the_classic_gpt2_adapter_has_as_many_parameters_as_it_has(tmp_path):
    wanted = on(gpt2_124m(tmp_path / "gpt2"), "lora.r=8", "lora.target_modules=[c_attn]")
    base = bases.read(wanted.model)
    assert bases.adapter_parameters(base, wanted.lora) == 294_912
    assert (base.hidden, base.layers, base.vocabulary) == (768, 12, 50257)
    some = on(tmp_path / "gpt2", "lora.r=8", "lora.target_modules=[c_attn]", "lora.layers_to_transform=[0,3]")
    assert bases.adapter_parameters(base, some.lora) == 294_912 // 6
    pattern = on(tmp_path / "gpt2", "lora.r=8", "lora.target_modules=.*c_attn", "lora.rank_pattern={c_attn: 4}")
    assert bases.adapter_parameters(base, pattern.lora) == 294_912 // 2


def test_the_count_is_that_of_the_run(trained):
    record = json.loads((trained / "record.json").read_text())
    wanted = config.from_values(config.read_values(trained / "config.yaml"))
    base = bases.read(wanted.model)
    assert bases.adapter_parameters(base, wanted.lora) == record["trainable_parameters"]
    total = base.bytes(1, None) + record["trainable_parameters"]
    assert total == record["parameters"]


def test_memory_grows_with_what_takes_it(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    base = bases.read(on(folder).model)

    def memory(*overrides):
        return planner.cell_memory(base, on(folder, *overrides))

    assert memory("lora.r=16") - memory("lora.r=8") == 8 * sum(map(sum, base.linears.values())) * 16
    assert memory("lora.r=8") > memory("lora.r=8", "trainer.optim=sgd")
    assert memory("trainer.per_device_train_batch_size=8") > memory("trainer.per_device_train_batch_size=4")
    assert memory("trainer.gradient_checkpointing=true") < memory()
    assert memory("device.dtype=float32") > memory("device.dtype=bfloat16")
    four_bits = planner.shared_memory(base, on(folder, "model.quantization=nf4", "device.dtype=float32"))
    assert four_bits < planner.shared_memory(base, on(folder, "device.dtype=float32"))


def sweep_of(folder, count, *overrides):
    return groups.form([Cell([n], [], {}, on(folder, f"seed={n}", *overrides), id=str(n)) for n in range(count)])


def test_waves_hold_what_the_limits_allow(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    found = sweep_of(folder, 7)
    assert [len(one.cells) for one in planner.plan(found, Limits(None, 3)).waves] == [3, 3, 1]
    one = planner.cell_memory(bases.read(on(folder).model), on(folder))
    base = planner.shared_memory(bases.read(on(folder).model), on(folder))
    plan = planner.plan(found, Limits(int(base + 2 * one) + 1))
    assert [len(wave.cells) for wave in plan.waves] == [2, 2, 2, 1]
    assert plan.waves[0].memory == pytest.approx(base + 2 * one)
    tight = planner.plan(found, Limits(1000))
    assert [len(wave.cells) for wave in tight.waves] == [1] * 7 and "wave 1 may need" in tight.notes[0]


def test_a_base_that_is_not_here_yet_is_said_to_be_unknown():
    plan = planner.plan(groups.form([Cell([0], [], {}, spec("model=gpt2"), id="a")]), Limits())
    assert plan.waves[0].memory is None and "openai-community/gpt2" in plan.notes[0]


@pytest.mark.parametrize(
    ("memory", "cells", "told"),
    [
        ("6 apples", None, "hydra.launcher.memory_limit=6 apples: must be an amount of memory"),
        (0, None, "memory_limit=0: must be"),
        (None, 0, "hydra.launcher.max_cells=0: must be a whole number of at least 1"),
        (None, "many", "hydra.launcher.max_cells=many"),
    ],
)
def test_limits_that_are_none_are_refused(memory, cells, told):
    with pytest.raises(ConfigError) as error:
        planner.limits(memory, cells)
    assert told in error.value.lines[0] and "; type hydra.launcher." in error.value.lines[0]


def test_limits_are_read():
    assert planner.limits("6GiB", 8) == Limits(6 * 2**30, 8)
    assert planner.limits("1.5 GB", None) == Limits(1_500_000_000, None)
    assert planner.limits(None, None) == Limits()


def test_time_is_that_of_a_run_on_the_same_base_or_unknown(tmp_path, trained):
    wanted = config.from_values(config.read_values(trained / "config.yaml"))
    found = pace.of(wanted.model, trained.parent)
    record = json.loads((trained / "record.json").read_text())
    assert found.seconds(wanted) == pytest.approx(record["training"]["seconds"], rel=1e-6)
    (seconds,), (note,) = pace.estimates([wanted], tmp_path)
    assert seconds is None and "unknown: no run of tiny-llama here yet" in note

"""Estimates come from files: sizes agree with what training counts, and what is not known is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cases import cases, where_installed
from encoders import build_bert
from hydra import compose, initialize_config_dir

from peftrun.artifacts import base_files, classifier_head
from peftrun.composition.spec import build_spec, build_spec_from_values
from peftrun.config import paths
from peftrun.config import values as config
from peftrun.errors import ConfigError
from peftrun.planning import memory, parameter_count, throughput
from peftrun.planning.joint_memory import (
    Limits,
    choose_cells_per_step,
    estimate_cell_memory,
    estimate_shared_memory,
    read_limits,
)
from peftrun.planning.memory import Lengths
from peftrun.sweep import groups, planner
from peftrun.sweep.cells import Cell


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        yield


def spec(*overrides):
    return build_spec(compose("config", overrides=list(overrides)))


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
    base = base_files.read_base_info(wanted.model)
    assert parameter_count.count_adapter_parameters(base, wanted.lora) == 294_912
    assert (base.hidden, base.layers, base.vocabulary) == (768, 12, 50257)
    some = on(tmp_path / "gpt2", "lora.r=8", "lora.target_modules=[c_attn]", "lora.layers_to_transform=[0,3]")
    assert parameter_count.count_adapter_parameters(base, some.lora) == 294_912 // 6
    pattern = on(tmp_path / "gpt2", "lora.r=8", "lora.target_modules=.*c_attn", "lora.rank_pattern={c_attn: 4}")
    assert parameter_count.count_adapter_parameters(base, pattern.lora) == 294_912 // 2


@pytest.mark.slow
def test_the_count_is_that_of_the_run(trained):
    record = json.loads((trained / "record.json").read_text())
    wanted = build_spec_from_values(config.read_values(trained / "config.yaml"))
    base = base_files.read_base_info(wanted.model)
    found = parameter_count.estimate_parameters(base, wanted)
    assert found.trained == record["trainable_parameters"] and found.exact
    assert base.parameters + found.held == record["parameters"]


VARIANTS = {
    "lora": [], "rslora": [], "dora": [], "lora_fa": [], "loraplus": [], "lora_rank_pattern": [], "bdlora": [], "lora_trainable_tokens": [], "pissa": [], "olora": [],
    "velora": ["lora.velora_config.num_groups=8"], "alora": [],
}  # fmt: skip
SHAPED = [
    ["lora.target_modules=[q_proj,down_proj]", "lora.exclude_modules=.*layers.0.*"], ["lora.layers_to_transform=[1]", "lora.target_modules=[q_proj]"], ["lora.layers_to_transform=1", "lora.target_modules=[q_proj]"], ["lora.lora_bias=true"],
    ["lora.target_modules=[embed_tokens,v_proj]"], ["lora.modules_to_save=[embed_tokens]", "lora.target_modules=[v_proj]"],
    ["lora.target_modules='.*(up|gate)_proj'", "lora.use_dora=true", "lora.rank_pattern={gate_proj: 2}"],
]  # fmt: skip


@cases("overrides", [[f"lora={name}", *more] for name, more in VARIANTS.items()] + SHAPED, ids=" ".join, every=4)
def test_every_variant_of_lora_is_counted_exactly(llama, overrides):
    from peftrun.adapters import attach
    from peftrun.models.base import load_base
    from peftrun.models.device import resolve_device

    wanted = on(llama, "device.dtype=float32", *overrides)
    found = parameter_count.estimate_parameters(base_files.read_base_info(wanted.model), wanted)
    trained, everything = attach.count_parameters(
        attach.attach_adapter(load_base(wanted.model, resolve_device(wanted.device)), wanted.lora, 0)
    )
    assert (found.trained, found.exact) == (trained, True)
    assert base_files.read_base_info(wanted.model).parameters + found.held == everything


@cases("overrides", [["lora=eva"], ["lora=ia3"], ["lora.bias=all"], ["lora.target_modules=[lm_head]"]])
def test_what_files_do_not_tell_is_no_exact_count(llama, overrides):
    wanted = on(llama, *overrides)
    assert not parameter_count.estimate_parameters(base_files.read_base_info(wanted.model), wanted).exact


@cases("task", ["spanish_sentiment", "ner"])
def test_a_classifiers_head_is_counted(tmp_path, task):
    from peftrun.adapters import attach
    from peftrun.models.base import load_base
    from peftrun.models.device import resolve_device

    folder = build_bert(tmp_path / "bert")
    wanted = on(folder, f"task={task}", "lora.target_modules=[query,value]", "device.dtype=float32")
    found = parameter_count.estimate_parameters(base_files.read_base_info(wanted.model), wanted)
    base = load_base(wanted.model, resolve_device(wanted.device), head=classifier_head.get_task_head(wanted.task))
    assert (found.trained, found.exact) == (
        attach.count_parameters(attach.attach_adapter(base, wanted.lora, 0))[0],
        True,
    )
    all_linear = on(folder, f"task={task}")
    assert not parameter_count.estimate_parameters(base_files.read_base_info(wanted.model), all_linear).exact


def test_memory_grows_with_what_takes_it(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    base = base_files.read_base_info(on(folder).model)

    def needed(*overrides):
        return estimate_cell_memory(base, on(folder, *overrides))

    assert needed("lora.r=16") - needed("lora.r=8") == 8 * sum(map(sum, base.linears.values())) * 16
    assert needed("lora.r=8") > needed("lora.r=8", "trainer.optim=sgd")
    assert needed("trainer.per_device_train_batch_size=8") > needed("trainer.per_device_train_batch_size=4")
    assert needed("device.dtype=float32") > needed("device.dtype=bfloat16")
    with where_installed():
        quantized = on(folder, "model.quantization=nf4", "device.dtype=float32")
    four_bits = estimate_shared_memory(base, quantized)
    assert four_bits < estimate_shared_memory(base, on(folder, "device.dtype=float32"))


def test_a_run_by_itself_has_parts_that_grow_with_what_takes_them(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    base = base_files.read_base_info(on(folder).model)

    def parts(*overrides, **lengths):
        return memory.estimate_memory(base, on(folder, *overrides), Lengths(**lengths) if lengths else None)

    plain = parts("device.dtype=bfloat16")
    assert plain.weights == 2 * base.parameters and parts("device.dtype=float32").weights == 4 * base.parameters
    assert plain.loading == memory.IMPORTED + 2 * base.parameters + 4 * base.parameters  # its files are float32
    assert parts("device.dtype=float32").loading == memory.IMPORTED + 4 * base.parameters
    assert parts("lora.r=16").learning == 2 * parts("lora.r=8").learning == 6 * parts("lora.r=8").adapter
    assert parts("trainer.optim=sgd").learning == parts().learning / 3
    assert parts(longest=64, learned=1).activations < plain.activations
    assert 0 < parts("trainer.gradient_checkpointing=true").activations < parts().activations
    assert parts("task.loss_on=all").logits == 4 * 128 * 50257 * memory.LOGITS == 32 * plain.logits
    assert parts(longest=100, learned=60).logits == 4 * 100 * 50257 * memory.LOGITS  # more than half of the tokens
    assert parts("device.dtype=bfloat16", "task.max_length=512").activations == 4 * plain.activations  # no heads told
    assert parts("action.evaluate_before=false").before == 0 < plain.before
    whole = parts("lora=none")
    assert whole.adapter == 0 and whole.weights == 4 * base.parameters and whole.learning == 12 * base.parameters
    assert plain.peak == max(plain.loading, sum(plain.as_dict()[name] for name in HELD) + plain.before + plain.after)


def test_plain_products_keep_their_scores(llama):
    base = base_files.read_base_info(on(llama).model)

    def kept(tokens, *overrides):
        return memory.estimate_memory(base, on(llama, f"task.max_length={tokens}", *overrides)).activations / tokens

    assert (
        kept(512, "device.dtype=bfloat16") - kept(256, "device.dtype=bfloat16") == 4 * 2 * 6 * 4 * 256
    )  # rows, layers, bytes, heads
    assert kept(1024, "device.dtype=bfloat16") < kept(512, "device.dtype=bfloat16")
    assert kept(512, "device.dtype=float32") == kept(256, "device.dtype=float32")
    eager = ["device.dtype=float32", "model.attn_implementation=eager"]
    assert kept(512, *eager) - kept(256, *eager) == 4 * 2 * 4 * 4 * 256


HELD = ("process", "weights", "adapter", "learning")


def test_the_rules_that_other_modules_hold_are_the_same():
    from peftrun.training import completion_loss, cpu_attention

    assert memory.PLAIN_PRODUCTS == cpu_attention.MAX_ROW_TOKENS and memory.SHORT == completion_loss.MAX_LABEL_SHARE


def test_a_gpu_takes_nothing_for_the_process_and_leaves_no_holes(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    base = base_files.read_base_info(on(folder).model)
    here, there = (
        memory.estimate_memory(base, on(folder, f"device={name}", "device.dtype=float32")) for name in ("cpu", "cuda")
    )
    assert there.process == 0 and there.loading == there.weights and 0 < there.activations < here.activations


@cases("overrides", [[], ["trainer.gradient_accumulation_steps=3"], ["trainer.max_steps=7"]])
@cases("rows", [1, 5, 32, 33])
def test_steps_are_those_of_the_loop(rows, overrides):
    from peftrun.training import fit

    trainer = spec("trainer=epochs", "trainer.num_train_epochs=1.5", *overrides).trainer
    assert throughput.count_optimizer_steps(trainer, rows) == fit.count_steps(trainer, rows)
    assert throughput.count_optimizer_steps(trainer, 2 * rows, 2) == fit.count_steps(trainer, rows)


def sweep_of(folder, count, *overrides):
    return groups.group_cells([Cell([n], [], {}, on(folder, f"seed={n}", *overrides), id=str(n)) for n in range(count)])


def test_waves_hold_what_the_limits_allow(tmp_path):
    folder = gpt2_124m(tmp_path / "gpt2")
    found = sweep_of(folder, 7)
    assert [len(one.cells) for one in planner.plan_sweep(found, Limits(None, 3)).waves] == [3, 3, 1]
    one = estimate_cell_memory(base_files.read_base_info(on(folder).model), on(folder))
    base = estimate_shared_memory(base_files.read_base_info(on(folder).model), on(folder))
    plan = planner.plan_sweep(found, Limits(int(base + 2 * one) + 1))
    assert [len(wave.cells) for wave in plan.waves] == [2, 2, 2, 1]
    assert plan.waves[0].memory == pytest.approx(base + 2 * one)
    tight = planner.plan_sweep(found, Limits(1000))
    assert [len(wave.cells) for wave in tight.waves] == [1] * 7 and "wave 1 may need" in tight.notes[0]
    runs = [(cell.spec, None) for group in found for cell in group.cells]
    short = [(each, Lengths(16, 4)) for each, _ in runs]
    allowed = Limits(int(base + 2 * one) + 1)
    assert (
        choose_cells_per_step(runs, allowed)[0] == 2 and choose_cells_per_step(short, allowed)[0] > 2
    )  # as long as rows are, not as they may be
    told = choose_cells_per_step(runs, allowed)[1]
    assert "7 cells on one base model, 2 at once: about " in told and "of hydra.launcher.memory_limit (" in told
    few, own = choose_cells_per_step(runs, Limits(free=1000)), choose_cells_per_step(runs, Limits(None, 7, free=1000))
    assert few[0] == 1 and "hydra.launcher.max_cells=7 takes all at once" in few[1]
    assert own[0] == 7 and "all at once" in own[1]  # what the user sets wins
    assert "rows of at most 16 tokens" in choose_cells_per_step(short, Limits())[1]


def test_a_base_that_is_not_here_yet_is_said_to_be_unknown():
    plan = planner.plan_sweep(groups.group_cells([Cell([0], [], {}, spec("model=gpt2"), id="a")]), Limits())
    assert plan.waves[0].memory is None and "openai-community/gpt2" in plan.notes[0]


@cases(
    "memory, cells, told",
    [
        ("6 apples", None, "hydra.launcher.memory_limit=6 apples: must be an amount of memory"),
        (0, None, "memory_limit=0: must be"),
        (None, 0, "hydra.launcher.max_cells=0: must be a whole number of at least 1"),
        (None, "many", "hydra.launcher.max_cells=many"),
    ],
)
def test_limits_that_are_none_are_refused(memory, cells, told):
    with pytest.raises(ConfigError) as error:
        read_limits(memory, cells)
    assert told in error.value.lines[0] and "; type hydra.launcher." in error.value.lines[0]


def test_limits_are_read():
    assert read_limits("6GiB", 8) == Limits(6 * 2**30, 8)
    assert read_limits("1.5 GB", None) == Limits(1_500_000_000, None)
    assert read_limits(None, None) == Limits()


def test_time_is_that_of_a_run_on_the_same_base_or_unknown(tmp_path, trained):
    wanted = build_spec_from_values(config.read_values(trained / "config.yaml"))
    found = throughput.read_throughput(wanted.model, trained.parent)
    record = json.loads((trained / "record.json").read_text())
    assert found.seconds(wanted) == pytest.approx(record["training"]["seconds"], rel=1e-6)
    assert found.lengths(wanted).longest == max(map(len, rows_as_tokens(wanted)))
    others = replace(wanted, task=replace(wanted.task, prompt_template="{prompt}!"))
    assert found.lengths(others) is None and found.seconds(others) > found.seconds(wanted)
    (note,) = throughput.Throughputs({"tiny-llama": found}).notes([others])
    assert "each row counts as task.max_length=" in note and str(trained) in note
    none = throughput.read_throughputs([wanted], tmp_path)
    assert none.seconds(wanted) is None
    assert "unknown: no run of tiny-llama below outputs/ yet" in none.notes([wanted])[0]


def rows_as_tokens(wanted):
    from peftrun.models import base as base_models
    from peftrun.tasks import causal_lm

    tokenizer = base_models.load_tokenizer(Path(wanted.model.name_or_path), wanted.model)
    return [row.ids for row in causal_lm.load_rows(wanted.task, tokenizer).train]


def test_weights_that_lie_twice_in_a_folder_count_once_and_few_bits_as_they_are_stored(tmp_path):
    folder = header_only(tmp_path / "one", {"h.0.w.weight": [64, 64]}, n_embd=64, n_layer=1, vocab_size=8)
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    base = base_files.read_folder_info(folder)
    assert base.parameters == 64 * 64 and not base.is_half_precision
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(settings))
    assert base_files.read_folder_info(folder).bytes(2, None) == base.stored

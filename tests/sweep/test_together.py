"""A cell that is trained among others is the cell trained alone: weights, order of rows, schedule, logs, checkpoints."""

import json
import random

import encoders
import pytest
import torch
from safetensors.torch import load_file

from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_WEIGHTS, CHECKPOINTS, CONFIG, METRICS, RECORD
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.config import values as config
from peftrun.io import atomic_files
from peftrun.planning.joint_memory import Limits
from peftrun.runs import execute

FLOAT32 = 1e-5  # largest relative distance of a trained tensor to the lone run's, after up to 30 steps
STEPS = ["trainer.max_steps=30", "trainer.logging_steps=1", "trainer.learning_rate=1e-3", "trainer.save_strategy=no"]


def specs_of(*cells):
    return [build_spec(compose.compose_run(cell).cfg) for cell in cells]


def together(folder, cells, at_once=None, halving=None):
    """Run folders of the cells, trained on one base; cells are lists of overrides."""
    folders = [folder / f"joint{n}" for n in range(len(cells))]
    execute.execute_jointly(specs_of(*cells), folders, Limits(cells=at_once or len(cells)), halving)
    return folders


def alone(folder, cell, name="alone"):
    execute.execute_run(specs_of(cell)[0], folder / name)
    return folder / name


def record(folder):
    return atomic_files.read_json(folder / RECORD)


def weights(folder):
    return load_file(folder / ADAPTER / ADAPTER_WEIGHTS)


def distance(one, other):
    """Largest relative distance of two adapters' tensors."""
    a, b = weights(one), weights(other)
    assert list(a) == list(b)
    return max(((a[key] - b[key]).norm() / b[key].norm()).item() for key in a)


def apart(one, other):
    """Share of elements that differ by more than 1e-5 of the largest of their tensor."""
    a, b = weights(one), weights(other)
    far = sum(((a[key] - b[key]).abs() > FLOAT32 * b[key].abs().max()).sum().item() for key in a)
    return far / sum(one.numel() for one in a.values())


def assert_same(joint, lone):
    assert record(joint)["status"] == "completed", record(joint).get("error")
    # Adam takes a full step where a gradient is nothing but rounding: such an element, and it alone, may go another way.
    # Padding to the largest rank sums in another order, which a high learning rate carries on: a part in ten thousand.
    assert distance(joint, lone) < 1e-4 or apart(joint, lone) < 1e-2
    configs = [json.loads((folder / "adapter/adapter_config.json").read_text()) for folder in (joint, lone)]
    for one in configs:
        one["target_modules"] = sorted(one["target_modules"])
    assert configs[0] == configs[1]
    then, now = record(lone), record(joint)
    assert now["metrics"]["after"] == pytest.approx(then["metrics"]["after"], rel=1e-5)
    assert now["trainable_parameters"] == then["trainable_parameters"]
    assert now["parameters"] == then["parameters"]
    rows = [atomic_files.read_json_lines(folder / METRICS) for folder in (joint, lone)]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys() - {"entropy"}  # which TRL alone notes, where it computes every logit
        for key in one.keys() - {"seconds", "resident_bytes"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6), key


def check(tmp_path, cells, **how):
    for number, (joint, cell) in enumerate(zip(together(tmp_path, cells, **how), cells, strict=True)):
        assert_same(joint, alone(tmp_path, cell, f"alone{number}"))


LLAMA = {
    "ranks": [["lora.r=4"], ["lora.r=8"], ["lora.r=16", "seed=1"], ["lora.use_rslora=true", "lora.lora_alpha=8"],
              ["task.loss_on=all"]],
    "training": [
        ["trainer.learning_rate=3e-3", "trainer.lr_scheduler_type=cosine", "trainer.warmup_steps=5"],
        ["trainer.weight_decay=0.1", "trainer.adam_beta2=0.95", "trainer.adam_beta1=0.8"],
        ["trainer.max_grad_norm=0.1", "seed=3"],
        ["trainer.max_grad_norm=0", "seed=4", "lora.lora_alpha=2.5", "lora.alpha_pattern={q_proj: 7.5}"],
        ["trainer.optim=adafactor", "trainer.max_steps=12"],
        ["trainer.optim=sgd", "trainer.train_sampling_strategy=group_by_length"],
        ["trainer.optim=rmsprop", "trainer.arguments.optim_args='momentum=0.5'", "trainer.learning_rate=1e-3"],
        ["trainer.optim=adagrad", "trainer.lr_scheduler_type=warmup_stable_decay", "trainer.lr_scheduler_kwargs={num_decay_steps: 9}"],
    ],
    "batches": [
        ["trainer.per_device_train_batch_size=2"],
        ["trainer.gradient_accumulation_steps=3", "trainer.max_steps=20"],
        ["trainer.max_steps=-1", "trainer.num_train_epochs=2.5", "trainer.warmup_steps=0.1"],
        ["trainer.per_device_train_batch_size=16", "task.data.num_train_rows=20"],
        ["trainer.arguments={dataloader_drop_last: true, logging_strategy: epoch}", "trainer.per_device_train_batch_size=5",
         "trainer.max_steps=-1", "trainer.num_train_epochs=2"],
    ],
    "targets": [
        ["lora.target_modules=[q_proj,v_proj]", "lora.rank_pattern={q_proj: 2}"],
        ["lora.target_modules=[up_proj]", "lora.layers_to_transform=[1]", "lora.init_lora_weights=gaussian"],
        ["lora.target_modules='.*mlp.*_proj'", "lora.exclude_modules=[down_proj]", "lora.alpha_pattern={up_proj: 4}"],
        ["lora.init_lora_weights=false"],
    ],
    "dropout": [["lora.lora_dropout=0.2"], ["lora.lora_dropout=0.5", "seed=1"], []],
    "validation": [
        ["trainer.eval_strategy=steps", "trainer.eval_steps=10", "task.data.num_validation_rows=6", "trainer.save_strategy=steps",
         "trainer.save_steps=10", "trainer.load_best_model_at_end=true", "trainer.early_stopping_patience=1"],
        ["trainer.eval_strategy=epoch", "task.data.num_validation_rows=8", "trainer.max_steps=20"],
        ["trainer.eval_strategy=steps", "trainer.eval_steps=6", "task.data.num_validation_rows=6", "trainer.save_strategy=steps",
         "trainer.save_steps=6", "trainer.load_best_model_at_end=true", "task.metrics=[chrf]", "trainer.metric_for_best_model=chrf",
         "task.max_new_tokens=6"],
        ["trainer.eval_strategy=steps", "trainer.eval_steps=3", "task.data.num_validation_rows=6",
         "trainer.arguments={eval_delay: 6, eval_on_start: true}", "trainer.lr_scheduler_type=reduce_lr_on_plateau",
         "trainer.lr_scheduler_kwargs={patience: 0}"],
        ["trainer.eval_strategy=steps", "trainer.eval_steps=3", "task.data.num_validation_rows=6", "trainer.lr_scheduler_type=greedy",
         "trainer.lr_scheduler_kwargs={patience: 1, smooth: true}"],
    ],
}  # fmt: skip


QUICK = ("ranks",)


@pytest.mark.parametrize(
    "axis", [axis if axis in QUICK else pytest.param(axis, marks=pytest.mark.slow) for axis in LLAMA]
)
def test_a_cell_equals_its_lone_run(tmp_path, monkeypatch, llama, on_tiny, axis):
    monkeypatch.chdir(tmp_path)
    steps = [*STEPS, "trainer.max_steps=12", "trainer.warmup_steps=2"] if axis in QUICK else STEPS
    check(tmp_path, [[*on_tiny(llama), *steps, *cell] for cell in LLAMA[axis]])


@pytest.mark.slow
def test_also_on_conv1d_layers_of_a_base_that_drops_units_itself(tmp_path, monkeypatch, gpt2, on_tiny):
    monkeypatch.chdir(tmp_path)
    cells = [["lora.r=4"], ["lora.target_modules=[c_attn]", "seed=1"], ["lora.lora_dropout=0.3", "lora.r=16"]]
    check(tmp_path, [[*on_tiny(gpt2), *STEPS, *cell] for cell in cells])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [encoders.on_texts, encoders.on_words])
def test_also_where_each_cell_has_a_head_of_its_own(tmp_path, monkeypatch, rows):
    monkeypatch.chdir(tmp_path)
    overrides = rows(encoders.build_bert(tmp_path / "bert"), tmp_path)
    cells = [["seed=1"], ["lora.r=2", "trainer.learning_rate=3e-3"], ["lora.lora_dropout=0.1"]]
    cells += [["trainer.gradient_accumulation_steps=2", "trainer.per_device_train_batch_size=3"]]
    cells += [["trainer.eval_strategy=steps", "trainer.eval_steps=5", "task.data.num_validation_rows=6"]]
    check(tmp_path, [[*overrides, *STEPS, "trainer.max_steps=20", *cell] for cell in cells])


@pytest.mark.slow
def test_also_with_an_encoder_and_a_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"en": f"muy {n}", "es": "bueno " * (n % 3 + 1)}) + "\n" for n in range(30)))
    overrides = [
        "model=pretrained", f"model.name_or_path={encoders.build_t5(tmp_path / 't5')}", "task=translation",
        "task.data.source=file", f"task.data.path={pairs}", "task.data.num_test_rows=6", 'task.prompt_template="{en}"',
        'task.completion_template="{es}"', "task.metrics=null", "device=cpu", "device.dtype=float32",
    ]  # fmt: skip
    cells = [["seed=1"], ["lora.r=4", "trainer.gradient_accumulation_steps=2"], ["lora.lora_dropout=0.1"]]
    check(tmp_path, [[*overrides, *STEPS, "trainer.max_steps=20", *cell] for cell in cells])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_also_where_a_cell_that_drops_units_is_the_only_one_in_a_step(tmp_path, monkeypatch, request, on_tiny, model):
    monkeypatch.chdir(tmp_path)
    base = [*on_tiny(request.getfixturevalue(model)), *STEPS, "trainer.max_steps=8", "trainer.warmup_steps=0"]
    check(tmp_path, [[*base, "lora.lora_dropout=0.3", f"seed={seed}"] for seed in range(2)], at_once=1)


@pytest.mark.slow
def test_cells_that_wait_for_a_seat_are_the_same(tmp_path, monkeypatch, llama, on_tiny):
    monkeypatch.chdir(tmp_path)
    cells = [[f"seed={seed}", f"trainer.max_steps={20 + 5 * seed}"] for seed in range(5)]
    check(tmp_path, [[*on_tiny(llama), *STEPS, *cell] for cell in cells], at_once=2)


AXES = {
    "lora.r": [2, 3, 8], "lora.lora_alpha": [4, 32], "lora.lora_dropout": [0.0, 0.3], "lora.use_rslora": ["true", "false"],
    "trainer.learning_rate": [1e-4, 3e-3], "trainer.weight_decay": [0.0, 0.1], "trainer.warmup_steps": [0, 4],
    "trainer.lr_scheduler_type": ["linear", "constant"], "trainer.max_grad_norm": [0.3, 1.0], "trainer.max_steps": [8, 13],
    "trainer.per_device_train_batch_size": [1, 4], "trainer.gradient_accumulation_steps": [1, 2], "seed": [0, 1, 2],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("grid", range(8))
def test_random_grids(tmp_path, monkeypatch, llama, gpt2, on_tiny, grid):
    """Cells drawn from all axes at once, on either base, with fewer seats than cells."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(grid)
    base = [*on_tiny(draw.choice([llama, gpt2])), *STEPS]
    cells = [[*base, *(f"{key}={draw.choice(values)}" for key, values in AXES.items())] for _ in range(4)]
    check(tmp_path, cells, at_once=draw.choice([2, 3, 4]))


@pytest.mark.slow
def test_under_autocast_too(tmp_path, monkeypatch, llama, on_tiny):
    """On a GPU a run alone computes its float32 adapter in bfloat16, by autocast, and so do cells: neither is as without it."""
    from peftrun.training import fit

    monkeypatch.chdir(tmp_path)
    cells = [
        [
            *on_tiny(llama),
            *STEPS,
            "trainer.max_steps=10",
            "trainer.warmup_steps=0",
            "device.dtype=bfloat16",
            f"seed={n}",
            f"lora.lora_dropout={0.2 * n}",
            f"trainer.per_device_train_batch_size={1 + n}",
        ]
        for n in range(2)
    ]
    exact = together(tmp_path, cells)
    monkeypatch.setattr(fit, "get_autocast_dtype", lambda device: torch.bfloat16)
    (tmp_path / "rounded").mkdir()
    rounded = together(tmp_path / "rounded", cells)
    for number, (one, other) in enumerate(zip(rounded, exact, strict=True)):
        assert record(one)["status"] == "completed", record(one)["error"]
        lone = alone(tmp_path, cells[number], f"alone{number}")
        losses = [record(folder)["metrics"]["after"]["loss"] for folder in (one, lone)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        assert distance(one, other) > 0 and 0 < distance(one, lone) < 0.5


@pytest.mark.parametrize("lag", [0, 1])
def test_a_poisoned_cell_fails_alone(tmp_path, monkeypatch, llama, on_tiny, lag):
    """Also where the host reads losses a step late, as on a GPU."""
    from peftrun.training.joint.step_totals import StepTotals

    make = StepTotals.__init__

    def make_late(self, *args):
        make(self, *args)
        self.lag = lag

    monkeypatch.setattr(StepTotals, "__init__", make_late)
    monkeypatch.chdir(tmp_path)
    base = [*on_tiny(llama), *STEPS, "trainer.max_steps=10", "trainer.warmup_steps=0", "trainer.logging_steps=4"]
    cells = [[*base, "seed=1"], [*base, "trainer.learning_rate=1e30"], [*base, "lora.target_modules=[nowhere]"]]
    good, exploded, nowhere = together(tmp_path, cells)
    assert_same(good, alone(tmp_path, cells[0]))
    assert "the loss is nan at step 2, in a batch of" in record(exploded)["error"]
    assert "lora.target_modules=nowhere: matches no module" in record(nowhere)["error"]
    assert not (exploded / ADAPTER).exists() and not (nowhere / ADAPTER).exists()


@pytest.mark.slow
def test_a_cell_that_can_only_be_trained_alone_says_so(tmp_path, monkeypatch, llama, on_tiny):
    """An embedding is looked up, not multiplied: there is nothing to stack. The others go on without it."""
    from peftrun.sweep import run_cells

    monkeypatch.chdir(tmp_path)
    short = [*on_tiny(llama), *STEPS, "trainer.max_steps=4", "trainer.warmup_steps=0"]
    cells = [[*short, "lora.target_modules=[embed_tokens,q_proj]"], short, [*short, "seed=1"]]
    folders = [tmp_path / f"cell{n}" for n in range(3)]
    for folder, spec in zip(folders, specs_of(*cells), strict=True):
        atomic_files.write_text(folder / CONFIG, config.to_yaml(spec))
    run_cells.run(folders)
    for folder, cell in zip(folders, cells, strict=True):
        assert_same(folder, alone(tmp_path, cell, f"alone-{folder.name}"))
    assert ["joint_training" in record(folder) for folder in folders] == [False, True, True]


@pytest.mark.slow
def test_a_cell_goes_on_from_a_checkpoint_of_either_kind(tmp_path, monkeypatch, llama, on_tiny):
    """Checkpoints written among others are continued alone, and the other way round, to the same weights."""
    monkeypatch.chdir(tmp_path)
    cell = [*on_tiny(llama), *STEPS, "trainer.save_strategy=steps", "trainer.save_steps=10", "lora.lora_dropout=0.1",
            "trainer.lr_scheduler_type=constant"]  # fmt: skip
    whole = alone(tmp_path, cell, "whole")
    joint, _ = together(tmp_path, [cell, [*cell, "seed=1"]])
    for folder in (joint, whole):
        for number in (20, 30):  # as if it had been killed between steps 20 and 30
            marked = folder / CHECKPOINTS / f"checkpoint-{number}" / "complete"
            marked.unlink() if number == 30 else None
        values = record(folder) | {"status": "failed"}
        atomic_files.write_json(folder / RECORD, values)
    continued = alone(tmp_path, [*cell, f"action.resume={joint}"], "continued")
    (tmp_path / "second").mkdir()
    again, other = together(tmp_path / "second", [[*cell, f"action.resume={whole}"], [*cell, "seed=2"]])
    for folder in (continued, again):
        assert distance(folder, whole) < FLOAT32
        assert record(folder)["resumed_from"]
    for folder in (again, other):  # as if both had been killed after their last steps
        atomic_files.write_json(folder / RECORD, record(folder) | {"status": "failed"})
    (tmp_path / "third").mkdir()
    seeds = {"seed=0": again, "seed=2": other}
    ended = together(tmp_path / "third", [[*cell, seed, f"action.resume={run}"] for seed, run in seeds.items()])
    for folder, run in zip(ended, seeds.values(), strict=True):
        assert record(folder)["training"]["steps"] == 30 and distance(folder, run) == 0


def test_the_base_is_measured_once_for_all(tmp_path, monkeypatch, llama, on_tiny, capfd):
    monkeypatch.chdir(tmp_path)
    together(
        tmp_path,
        [[*on_tiny(llama), *STEPS, "trainer.max_steps=2", "trainer.warmup_steps=0", f"seed={n}"] for n in range(3)],
    )
    said = capfd.readouterr().err
    assert said.count("evaluation before") == 1 and said.count("evaluation after") == 3


def test_halving_stops_the_worst_and_gives_their_seats_away(tmp_path, monkeypatch, llama, on_tiny):
    monkeypatch.chdir(tmp_path)
    rates = ("1e-5", "1e-4", "1e-3", "3e-3")
    cells = [[*on_tiny(llama), *STEPS, "trainer.max_steps=16", f"trainer.learning_rate={rate}"] for rate in rates]
    folders = together(tmp_path, cells, at_once=2, halving={"min_steps": 4, "factor": 2})
    found = [record(folder) for folder in folders]
    assert [one["status"] for one in found] == ["stopped", "stopped", "stopped", "completed"]
    assert [one["training"]["steps"] for one in found] == [4, 4, 8, 16]
    assert "number 2 of 2, of which 1 went on" in found[2]["stopped"]
    assert_same(folders[3], alone(tmp_path, cells[3]))
    assert (folders[0] / CHECKPOINTS / "checkpoint-4" / "complete").is_file()


@pytest.mark.slow
def test_the_base_is_as_it_was(tmp_path, monkeypatch, llama, on_tiny):
    """Two groups in one process: the second is what it is in a process of its own."""
    from peftrun.models import base_cache

    monkeypatch.chdir(tmp_path)
    cells = [[*on_tiny(llama), *STEPS, "trainer.max_steps=10", "trainer.warmup_steps=0", f"seed={n}"] for n in range(2)]
    threads = torch.get_num_threads()
    with base_cache.keep_base_cached():
        first = together(tmp_path, cells)
        (tmp_path / "again").mkdir()
        second = together(tmp_path / "again", cells)
    assert all(distance(one, other) == 0 for one, other in zip(first, second, strict=True))
    assert torch.get_num_threads() == threads

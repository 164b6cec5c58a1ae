"""Knobs of memory and speed: what they change, and that they do not change what is learned."""

import json
import math
import random

import pytest
import torch
from conftest import TINY_STEPS, cli_here
from safetensors.torch import load_file


def adapter(run):
    return load_file(run.run_dir / "adapter" / "adapter_model.safetensors")


def apart(one, other):
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, llama, on_tiny):
    return cli_here(tmp_path_factory.mktemp("plain"), *on_tiny(llama), *TINY_STEPS)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.gradient_checkpointing=true"],
        ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"],
        ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=4"],
        ["model.attn_implementation=eager"],
        ["trainer.optim=adamw_torch_fused"],
        ["trainer.dataloader_num_workers=1"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_what_is_learned_is_the_same(cli, llama, on_tiny, plain, overrides):
    run = cli(*on_tiny(llama), *TINY_STEPS, *overrides)
    assert run.code == 0, run.err
    assert apart(adapter(plain), adapter(run)) < 2e-4
    assert max(value.abs().max().item() for key, value in adapter(run).items() if "lora_B" in key) > 1e-3


def test_checkpointing_keeps_less_for_the_backward_pass(llama):
    from transformers import AutoModelForCausalLM

    ids = torch.arange(60).reshape(2, 30)
    kept = {}
    for on in (False, True):
        net = AutoModelForCausalLM.from_pretrained(llama).train()
        net.config.use_cache = False
        if on:
            net.gradient_checkpointing_enable()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, sizes=sizes: sizes.append(one.numel()) or one, lambda one: one
        ):
            net(ids, labels=ids)
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(cli, llama, on_tiny, plain):
    run = cli(*on_tiny(llama), *TINY_STEPS, "trainer.torch_compile=true")
    assert run.code == 0, run.err
    assert apart(adapter(plain), adapter(run)) < 2e-4


@pytest.mark.slow
def test_an_8_bit_optimizer_learns(cli, llama, on_tiny, plain):
    pytest.importorskip("bitsandbytes")
    run = cli(*on_tiny(llama), *TINY_STEPS, "trainer.optim=adamw_8bit")
    assert run.code == 0, run.err
    metrics = run.record()["metrics"]
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert 0 < apart(adapter(plain), adapter(run)) < 0.05


def test_rows_packed_into_one_learn_as_rows_alone(llama, tmp_path):
    """The loss and gradients of a packed row are those of its texts alone: no text sees another."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from peftrun.training.completion_loss import CompletionLossTrainer

    rows = [
        {"input_ids": list(range(5 * n, 5 * n + 9 + n)), "labels": [-100] * 4 + list(range(5 * n + 4, 5 * n + 9 + n))}
        for n in range(4)
    ]
    found = {}
    for packing in (False, True):
        net = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="sdpa")
        args = SFTConfig(
            str(tmp_path),
            packing=packing,
            max_length=64,
            use_cpu=True,
            report_to="none",
            bf16=False,
            per_device_train_batch_size=4,
        )
        loop = CompletionLossTrainer(
            net, args, train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(llama)
        )
        total, tokens = 0.0, 0
        for batch in loop.get_train_dataloader():
            count = int((batch["labels"][:, 1:] != -100).sum())
            loss = loop.compute_loss(net.train(), batch, num_items_in_batch=torch.tensor(count))
            (loss * count).backward()
            total, tokens = total + loss.item() * count, tokens + count
        found[packing] = (
            total,
            tokens,
            {key: value.grad.clone() for key, value in net.named_parameters() if value.grad is not None},
        )
    assert found[True][1] == found[False][1]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    assert apart(found[True][2], found[False][2]) < 1e-3


def test_packing_makes_fewer_and_fuller_rows(cli, llama, on_tiny):
    run = cli(
        *on_tiny(llama),
        "trainer.packing=true",
        "task.max_length=128",
        "trainer.max_steps=-1",
        "trainer.num_train_epochs=1",
        "trainer.warmup_steps=0",
    )
    assert run.code == 0, run.err
    assert run.record()["training"]["steps"] < math.ceil(32 / 4)


def validated(run):
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


@pytest.fixture
def memorised(tmp_path, llama, on_tiny):
    """Rows with nothing to learn but the rows themselves: the more of it, the worse on others."""
    draw = random.Random(0)
    rows = [{"prompt": f"Word {n}?", "completion": "".join(draw.choices("abcdefgh", k=6))} for n in range(24)]
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *on_tiny(llama), f"task.data.path={file}", "task.data.num_validation_rows=8", "trainer.learning_rate=2e-2", "trainer.warmup_steps=0",
        "trainer.logging_steps=4", "trainer.eval_strategy=steps", "trainer.eval_steps=4", "trainer.save_steps=4",
    ]  # fmt: skip


def test_the_best_checkpoint_is_what_is_saved(cli, memorised):
    run = cli(*memorised, "trainer.max_steps=40", "trainer.load_best_model_at_end=true")
    assert run.code == 0, run.err
    losses = validated(run)
    best = min(losses, key=losses.get)
    assert len(losses) == 10 and best != 40
    kept = load_file(run.run_dir / f"checkpoints/checkpoint-{best}/adapter_model.safetensors")
    assert apart(adapter(run), kept) == 0.0
    # Each step makes it worse but the first, whose learning rate is 0.
    steps = [
        "trainer.max_steps=2",
        "trainer.warmup_steps=1",
        "trainer.eval_steps=1",
        "trainer.save_steps=1",
        "trainer.learning_rate=1",
    ]
    run = cli(*memorised, *steps, "trainer.load_best_model_at_end=true")
    assert run.code == 0 and "has learned nothing; type trainer.warmup_steps=0" in run.err, run.err


def test_training_ends_early_where_nothing_gets_better(cli, memorised):
    run = cli(*memorised, "trainer.max_steps=80", "trainer.early_stopping_patience=2")
    assert run.code == 0, run.err
    assert run.record()["training"]["steps"] < 80


def test_no_more_checkpoints_than_asked_for(cli, llama, on_tiny):
    run = cli(
        *on_tiny(llama),
        "trainer.max_steps=8",
        "trainer.warmup_steps=0",
        "trainer.save_steps=2",
        "trainer.save_total_limit=1",
    )
    assert [path.name for path in (run.run_dir / "checkpoints").glob("checkpoint-*")] == ["checkpoint-8"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.load_best_model_at_end=true"], "trainer.load_best_model_at_end=true: needs the validation loss"),
        (
            ["trainer.eval_strategy=steps"],
            "trainer.eval_strategy=steps: contradicts task.data.num_validation_rows=None",
        ),
        (
            ["task.data.num_validation_rows=999", "trainer.eval_strategy=steps"],
            "task.data.num_validation_rows=999: there are 32 training rows",
        ),
        (["trainer.use_liger_kernel=true"], "trainer.use_liger_kernel=true: is for a GPU"),
        (["device.tf32=true"], "device.tf32=true: is for a GPU, and this run is on cpu; type device.tf32=false"),
        (["trainer.activation_offloading=true"], "trainer.activation_offloading=true: is for a GPU"),
    ],
)
def test_half_a_validation_is_refused(cli, llama, on_tiny, overrides, said):
    found = cli(*on_tiny(llama), *overrides)
    assert found.code == 1 and said in found.err and "Traceback" not in found.err


@pytest.mark.slow
def test_rows_without_padding_learn_the_same_from_fewer_tokens(cli, llama, tmp_path, on_tiny):
    rows = [{"prompt": "word " * (1 + 5 * (n % 4)), "completion": f"w{n}"} for n in range(40)]
    file = tmp_path / "uneven.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [*on_tiny(llama), *TINY_STEPS, f"task.data.path={file}", "lora.lora_dropout=0.0"]
    found, widths = [], []
    for knob in ("false", "true"):
        seen = []
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs, seen=seen: (
                seen.append(tuple(inputs[0].shape))
                if isinstance(module, torch.nn.Embedding) and module.training
                else None
            )
        )
        try:
            run = cli(*given, f"trainer.padding_free={knob}")
        finally:
            hook.remove()
        assert run.code == 0, run.err
        found.append(run)
        widths.append(seen)
    assert apart(adapter(found[0]), adapter(found[1])) < 2e-4
    assert all(shape[0] == 4 for shape in widths[0]) and all(shape[0] == 1 for shape in widths[1])
    assert sum(b for _, b in widths[1]) < 0.9 * sum(a * b for a, b in widths[0])
    losses = [[row["loss"] for row in logged(run)] for run in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert [row["num_tokens"] for row in logged(found[0])] == [row["num_tokens"] for row in logged(found[1])]


def logged(run):
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]

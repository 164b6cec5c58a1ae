"""A joint step computes what PEFT and torch compute for each adapter alone, in operations whose number hardly depends on the cells."""

import copy
from collections import Counter

import pytest
import torch
from cases import cases
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.adapters.joint.stacked_lora import StackedLora
from peftrun.training.joint.joint_adamw import AdamWStep, CellAdamW
from peftrun.training.joint.step import CellBatch, JointStep

TOKENS, LEARNED, VOCABULARY = 24, 6, 60


def build_step(folder, ranks, dropout=0.0, dtype=torch.float32, autocast=None):
    """A joint step of adapters of these ranks, B random too, on the tiny Llama."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for cell, rank in enumerate(ranks):
        config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)  # fmt: skip
        net = get_peft_model(net, config, f"cell{cell}") if cell == 0 else net
        net.add_adapter(f"cell{cell}", config) if cell else None
    lone = copy.deepcopy(net)
    return JointStep(
        StackedLora(net, [f"cell{cell}" for cell in range(len(ranks))]), "causal_lm", 0, autocast=autocast
    ), lone


def build_batches(rows):
    draw, batches = torch.Generator().manual_seed(1), []
    for cell, count in enumerate(rows):
        ids = torch.randint(1, VOCABULARY, (count, TOKENS), generator=draw)
        labels = torch.where(torch.arange(TOKENS) < TOKENS - LEARNED, -100, ids)
        torch.manual_seed(cell)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        batches.append(CellBatch(cell, inputs, torch.tensor(count * LEARNED), RngStream()))
    return batches


def compute_alone(lone, batch, autocast):
    """Loss and gradients of PEFT's own forward and backward pass with this cell's adapter."""
    lone.set_adapter(f"cell{batch.cell}")
    lone.train()
    torch.manual_seed(batch.cell)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = lone(**batch.inputs, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: one.grad for name, one in lone.named_parameters() if f".cell{batch.cell}." in name}


@cases(
    "ranks, rows, dropout, dtype, autocast, tolerance",
    [
        ([4, 4, 4], [2, 2, 2], 0.0, torch.float32, None, 1e-5),
        ([2, 8, 4], [1, 4, 2], 0.0, torch.float32, None, 1e-5),
        ([2, 8], [6, 4], 0.3, torch.float32, None, 1e-5),
        ([4, 4, 4], [2, 2, 2], 0.0, torch.bfloat16, torch.bfloat16, 0.15),
        ([2, 8, 4], [1, 4, 2], 0.3, torch.bfloat16, torch.bfloat16, 0.15),
        ([2, 8], [2, 4], 0.3, torch.bfloat16, None, 0.1),
    ],
)
def test_gradients_are_those_of_each_adapter_alone(llama, ranks, rows, dropout, dtype, autocast, tolerance):
    step, lone = build_step(llama, ranks, dropout, dtype, autocast)
    batches = build_batches(rows)
    step.train_batches(batches)
    for batch in batches:
        loss, grads = compute_alone(lone, batch, autocast)
        assert batch.loss.item() == pytest.approx(loss, rel=tolerance)
        joint = {name: one.grad for name, one in step.joint.net.named_parameters() if name in grads}
        assert len(grads) == 2 * len(step.joint.stacks) == len(joint)
        for name, grad in grads.items():
            assert (joint[name] - grad).norm() <= tolerance * grad.norm(), name


def test_adamw_steps_are_torchs_own(llama):
    """Other learning rates, betas, decays and limits of the norm for each cell; one waits while the others take a step."""
    settings = [(1e-2, (0.9, 0.99), 0.1, 0.05), (3e-3, (0.8, 0.95), 0.0, 0.0), (1e-2, (0.9, 0.99), 0.1, 1e3)]
    step, lone = build_step(llama, [2, 8, 4])
    joint, single = [], []
    for cell, (rate, betas, decay, _) in enumerate(settings):
        options = {"lr": rate, "betas": betas, "weight_decay": decay, "fused": True}
        joint.append(CellAdamW(step.joint.own[cell].values(), **options))
        assert joint[cell].can_bind(step.joint.rows.values[cell])
        joint[cell].bind(step.joint.rows.values[cell])
        single.append([one for name, one in lone.named_parameters() if f".cell{cell}." in name])
        single[cell] = (single[cell], torch.optim.AdamW(single[cell], **options))
    for turn in range(4):
        batches = [batch for batch in build_batches([2, 2, 2]) if batch.cell != 1 or turn % 2]
        for batch in batches:
            batch.adamw = AdamWStep(batch.cell, joint[batch.cell], settings[batch.cell][3])
        step.train_batches(batches)
        for batch in batches:
            parameters, optimizer = single[batch.cell]
            compute_alone(lone, batch, None)
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings[batch.cell][3] or float("inf"))
            assert batch.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
            optimizer.step()
            lone.zero_grad()
    assert not step.joint.rows.grads.any() and [int(one.steps) for one in joint] == [4, 2, 4]
    for cell, (parameters, optimizer) in enumerate(single):
        for mine, other in zip(step.joint.own[cell].values(), parameters, strict=True):
            torch.testing.assert_close(mine.data, other.data, rtol=1e-3, atol=1e-6)
            for name in ("exp_avg", "exp_avg_sq"):
                expected = optimizer.state[other][name]
                torch.testing.assert_close(
                    joint[cell].state[mine][name], expected, rtol=1e-3, atol=1e-3 * expected.max().item()
                )


class OperationCounter(TorchDispatchMode):
    """Counts what is asked of the device, and how often its answer is waited for."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.name()] += 1
        return function(*args, **(kwargs or {}))


def count_operations(folder, rows):
    """Operations of a whole joint step, optimizer steps included, and how many of them hand a number to the host."""
    step, _ = build_step(folder, [4] * len(rows))
    optimizers = [CellAdamW(own.values(), lr=1e-4 * (cell + 1)) for cell, own in enumerate(step.joint.own)]
    for cell, optimizer in enumerate(optimizers):
        optimizer.bind(step.joint.rows.values[cell])
    for _ in range(2):  # the first step verifies what later ones need not
        batches = build_batches(rows)
        for batch in batches:
            batch.adamw = AdamWStep(batch.cell, optimizers[batch.cell], 1.0)
        with OperationCounter() as counter:
            step.train_batches(batches)
    return counter.names.total(), counter.names["aten::_local_scalar_dense"]


@cases("few, many", [([2] * 2, [2] * 8), ([2, 1], [2, 1, 4, 1, 3, 2, 1, 2])])
def test_operations_and_waits_hardly_grow_with_the_cells(llama, few, many):
    operations, waits = zip(*(count_operations(llama, rows) for rows in (few, many)), strict=True)
    assert operations[1] < 1.2 * operations[0]  # four times as many cells
    assert waits[1] == waits[0]

"""What makes the training loop fast on a GPU, run on the CPU: nothing is read back within a step, nothing is cast twice, layers share their code."""

import contextlib
import json
import math

import pytest
import torch
from conftest import TINY_STEPS
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_training import rows, trained
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import peftrun
from peftrun.compat.peft import leave_casts_to_autocast
from peftrun.errors import DataError
from peftrun.models.device import Device
from peftrun.training import gpu_arguments, nan_guard, padding
from peftrun.training.compiled_blocks import compile_blocks
from peftrun.training.completion_loss import CompletionLossTrainer, collate_positions

READS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
)  # the host waits for the device


class OnGpu(CompletionLossTrainer):
    """The loss as a GPU has it, on the CPU."""

    def __init__(self, **options):
        super().__init__(**options)
        self.score_at_positions()


class CountReads(TorchDispatchMode):
    """Counts what the host reads of tensors. Boolean masks as indices are read, too."""

    def __init__(self):
        super().__init__()
        self.count, self.paused = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket.__name__ == "index" else []
        masks = sum(index is not None and index.dtype == torch.bool for index in indices)
        self.count += 0 if self.paused else masks + (func.name().partition(".")[0] in READS)
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def pause(self):
        self.paused = True
        yield
        self.paused = False


def count_reads(kind, folder, tmp_path, steps):
    """Reads during a training that logs at its first and last step. Batches are made on the host: what it reads for that is free."""
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=steps, logging_steps=1000, logging_first_step=True, logging_nan_inf_filter=False, use_cpu=True,
        bf16=False, optim="adamw_torch_fused", gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", report_to="none",
        per_device_train_batch_size=2,
    )  # fmt: skip
    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    data, tokenizer = list(rows(net.config.vocab_size)), AutoTokenizer.from_pretrained(folder)
    loop = kind(model=net, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    nan_guard.raise_on_nan_loss(loop, data, [""] * len(data), tokenizer, lag=int(kind is OnGpu))
    padding.count_padding(loop)
    mode, collate = CountReads(), loop.data_collator

    def collate_on_host(batch):
        with mode.pause():
            return collate(batch)

    loop.data_collator = collate_on_host
    with mode:
        loop.train()
    return mode.count


def test_no_step_waits_for_the_device(llama, tmp_path):
    a_step = {
        kind: (count_reads(kind, llama, tmp_path, 12) - count_reads(kind, llama, tmp_path, 4)) / 8
        for kind in (OnGpu, SFTTrainer)
    }
    # With a lag a loss is read once it has been computed: one read that finds its number there, and nothing else.
    assert a_step[OnGpu] <= 1 + 2 / 8 and a_step[SFTTrainer] >= 6, a_step


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_the_loss_of_a_gpu_is_trls(request, tmp_path, base):
    folder = request.getfixturevalue(base)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    ours, our_log = trained(OnGpu, folder, tmp_path, **settings)
    theirs, their_log = trained(SFTTrainer, folder, tmp_path, **settings)
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-4 * (value - start[name]).norm() + 1e-7, name
    for one, other in zip(our_log, their_log, strict=True):
        assert one.keys() == other.keys()
        for key in ("loss", "num_tokens", "mean_token_accuracy", "entropy", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    batch = {"labels": torch.tensor([[-100, 7, -100, 8], [9, -100, -100, 5]])}
    assert collate_positions(lambda rows: rows)(batch)["label_positions"].tolist() == [0, 2, 6]


def test_a_loss_that_is_read_late_ends_the_run_before_it_is_saved(llama, tmp_path):
    """Row 5 has a token whose embedding is no number. Whatever the next steps do, the message names its step and its row."""
    for save_steps in (3, 100):  # a checkpoint of the very step; none
        net, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
        data = list(rows(net.config.vocab_size))
        bad = net.config.vocab_size - 1
        data[5]["input_ids"][0] = bad
        table = net.get_input_embeddings()
        table.weight = torch.nn.Parameter(table.weight.detach().clone(), requires_grad=False)
        table.weight.data[bad] = math.nan
        out = tmp_path / str(save_steps)
        args = SFTConfig(
            output_dir=str(out), max_steps=8, logging_steps=100, save_steps=save_steps, use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, per_device_train_batch_size=2, train_sampling_strategy="sequential", report_to="none",
            logging_nan_inf_filter=False,
        )  # fmt: skip
        loop = OnGpu(model=net, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
        names = [f"pairs.jsonl: row {number}" for number in range(len(data))]
        nan_guard.raise_on_nan_loss(loop, data, names, tokenizer, lag=1)
        with pytest.raises(DataError, match=r"nan at step 3, in a batch of pairs.jsonl: rows 4, 5"):
            loop.train()
        # Without a checkpoint the guard is one batch late; before a checkpoint it is not.
        assert loop.state.global_step == 3 and not list(out.glob("checkpoint-*")), save_steps
        assert all(math.isfinite(row["loss"]) for row in loop.state.log_history if "loss" in row)


def test_lora_layers_do_not_cast_what_autocast_casts_back(llama):
    def run(enabled):
        torch.manual_seed(0)
        net = get_peft_model(
            AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16),
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
        ids, saved = torch.arange(5, 65).reshape(2, 30), {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda one: saved.update({one.untyped_storage().data_ptr(): one}) or one, lambda one: one
        )
        with leave_casts_to_autocast(net, enabled), hooks, torch.autocast("cpu", torch.bfloat16):
            loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        with torch.no_grad():  # outside of autocast the cast is still there: an evaluation, answers that are generated
            logits = net(input_ids=ids).logits
        grads = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
        weights = {value.untyped_storage().data_ptr() for value in net.parameters()}
        return (
            loss,
            logits,
            grads,
            sum(one.untyped_storage().nbytes() for key, one in saved.items() if key not in weights),
        )

    plain, fast = run(False), run(True)
    assert torch.equal(plain[0], fast[0]) and torch.equal(plain[1], fast[1]) and plain[2].keys() == fast[2].keys()
    assert all(torch.equal(value, fast[2][name]) for name, value in plain[2].items())
    assert fast[3] < 0.9 * plain[3]


def test_layers_are_compiled_once_for_all_lengths(llama):
    from torch._dynamo.utils import counters

    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    ).train()
    batches = [
        torch.randint(5, 60, (size, width)) for size, width in ((4, 17), (4, 30), (4, 9), (2, 30), (4, 41), (3, 12))
    ]

    def losses():
        for ids in batches:
            net.zero_grad()
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            yield loss.detach(), [value.grad.clone() for value in net.parameters() if value.grad is not None]

    plain, names = list(losses()), list(net.state_dict())
    torch._dynamo.reset()
    counters.clear()
    with compile_blocks(net, True, {"torch_compile_backend": "eager"}):
        compiled = list(losses())
        assert list(net.state_dict()) == names
    assert 1 <= counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]
    for (loss, grads), (other, others) in zip(plain, compiled, strict=True):
        assert torch.allclose(loss, other, atol=1e-6)
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(grads, others, strict=True))


@pytest.mark.slow
def test_padding_is_counted_and_compiled_layers_learn_the_same(cli, llama, on_tiny, tmp_path):
    file = tmp_path / "uneven.jsonl"
    pairs = [{"prompt": "word " * (1 + 7 * (n % 4)), "completion": f"w{n}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = [*on_tiny(llama), *TINY_STEPS, f"task.data.path={file}", "task.max_length=256"]
    runs = {
        knob: cli(*given, *knob.split())
        for knob in (
            "trainer.torch_compile=false",
            "trainer.train_sampling_strategy=group_by_length",
            "trainer.torch_compile=true trainer.arguments.torch_compile_backend=eager",
        )
    }
    assert all(run.code == 0 for run in runs.values()), [run.err for run in runs.values()]
    plain, grouped, compiled = runs.values()
    share = plain.record()["training"]["padding_share"]
    assert share > 0.3 and grouped.record()["training"]["padding_share"] < share
    assert f"{share:.0%} of what was computed; trainer.train_sampling_strategy=group_by_length" in plain.out + plain.err
    one, other = (load_file(run.run_dir / "adapter" / "adapter_model.safetensors") for run in (plain, compiled))
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)
    assert plain.record()["training"]["gpu_choices"] == []


def test_what_a_gpu_is_given(llama):
    """The choices themselves need no GPU."""
    net = AutoModelForCausalLM.from_pretrained(llama)

    class Rows:
        collator = objective = None

    for place, overrides, expected in (
        ("cpu", [], ("adamw_torch", False)),
        ("cuda", [], ("adamw_torch_fused", gpu_arguments.has_liger_kernels("llama"))),
        ("cuda", ["trainer.optim=sgd", "trainer.use_liger_kernel=false"], ("sgd", False)),
    ):
        trainer = peftrun.load(*overrides).trainer
        assert (trainer.use_liger_kernel is None) == (len(overrides) < 2)
        arguments = {
            "optim": trainer.optim,
            "use_liger_kernel": bool(trainer.use_liger_kernel),
            "bf16": True,
            "fp16": False,
        }
        device = Device(place, torch.bfloat16, "")
        chosen = gpu_arguments.set_gpu_arguments(arguments, trainer, device, net, Rows())
        assert (arguments["optim"], arguments["use_liger_kernel"]) == expected
        assert (chosen == ()) == (place == "cpu") and ("fused optimizer" in chosen) == (expected[0][-5:] == "fused")

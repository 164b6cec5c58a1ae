"""The trainer: same loss and gradients as the full-logits loss, whatever is left out of the arithmetic."""

import copy
import functools
import json
import re

import encoders
import pytest
import torch
from cases import REST, cases
from conftest import jsonl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import peftrun
from peftrun.errors import ConfigError
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.training import epochs
from peftrun.training.completion_loss import CompletionLossTrainer

ROWS = [(30, 2), (17, 5), (41, 1), (25, 3), (9, 2), (33, 4), (12, 1), (28, 2)]  # prompt and answer lengths


def rows(vocabulary):
    generator = torch.Generator().manual_seed(3)
    for prompt, answer in ROWS:
        ids = torch.randint(5, vocabulary, (prompt + answer,), generator=generator).tolist()
        yield {"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]}


def trained(trainer, folder, tmp_path, **settings):
    """Parameters after three steps, and the logged rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, logging_steps=1, use_cpu=True, bf16=False, learning_rate=1e-2, optim="sgd", max_grad_norm=0.0,
        gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", **settings,
    )  # fmt: skip
    data = Dataset.from_list(list(rows(model.config.vocab_size)))
    loop = trainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    loop.train()
    return {name: value.detach().clone() for name, value in model.named_parameters()}, loop.state.log_history[:-1]


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_the_answer_loss_has_the_gradients_of_the_full_loss(request, tmp_path, base, batch, accumulation):
    folder = request.getfixturevalue(base)
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    ours, our_log = trained(CompletionLossTrainer, folder, tmp_path, **settings)
    theirs, their_log = trained(SFTTrainer, folder, tmp_path, **settings)
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name, value in theirs.items():
        moved = (value - start[name]).norm()
        assert (ours[name] - value).norm() <= 1e-4 * moved + 1e-7, name
    for one, other in zip(our_log, their_log, strict=True):
        for key in ("loss", "num_tokens", "mean_token_accuracy", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key


def test_logits_are_computed_only_where_labels_are(llama, tmp_path):
    widths = []

    class Watching(CompletionLossTrainer):
        def __init__(self, model, **given):
            model.get_output_embeddings().register_forward_hook(
                lambda module, inputs, out: widths.append(inputs[0].shape[1])
            )
            super().__init__(model=model, **given)

    trained(Watching, llama, tmp_path, per_device_train_batch_size=4)
    assert len(widths) == 3 and max(widths) <= sum(sorted((answer for _, answer in ROWS), reverse=True)[:4])


def test_where_most_positions_are_learned_trl_computes_the_loss(llama):
    ids = torch.arange(5, 15)[None]
    inputs = {"input_ids": ids, "labels": copy.deepcopy(ids), "attention_mask": torch.ones_like(ids)}
    tokenizer = AutoTokenizer.from_pretrained(llama)
    args = SFTConfig(output_dir="unused", use_cpu=True, bf16=False, gradient_checkpointing=False)
    data = Dataset.from_list(list(rows(300)))
    loop = CompletionLossTrainer(
        model=AutoModelForCausalLM.from_pretrained(llama), args=args, train_dataset=data, processing_class=tokenizer
    )
    loop.model.train()
    assert loop._select_positions(inputs) is None
    inputs["labels"][:, :8] = IGNORE_INDEX
    assert loop._select_positions(inputs).tolist() == [7, 8]


KNOBS = {
    "packing": ["trainer.packing=true"],
    "gradient_checkpointing": ["trainer.gradient_checkpointing=true"],
    "accumulation": ["trainer.gradient_accumulation_steps=2"],
    "label_smoothing": ["trainer.label_smoothing_factor=0.1"],
    "neftune": ["trainer.neftune_noise_alpha=5.0"],
    "weight_decay": ["trainer.weight_decay=0.5"],
    "clipping": ["trainer.max_grad_norm=0.001"],
    "adafactor": ["trainer.optim=adafactor"],
    "beta1": ["trainer.adam_beta1=0.5"],
    "beta2": ["trainer.adam_beta2=0.5"],
    "epsilon": ["trainer.adam_epsilon=0.1"],
    "schedule": ["trainer.lr_scheduler_type=constant"],
    "schedule_settings": [
        "trainer.lr_scheduler_type=cosine_with_min_lr",
        "trainer.lr_scheduler_kwargs={min_lr_rate: 0.5}",
    ],
    "warmup": ["trainer.warmup_steps=2"],
    "order": ["trainer.train_sampling_strategy=sequential"],
    "batch": ["trainer.per_device_train_batch_size=2"],
    "momentum": ["trainer.optim=sgd", "trainer.arguments.optim_args='momentum=0.9'"],
    "loss_type": ["trainer.arguments.loss_type=dft"],
    "packing_strategy": ["trainer.packing=true", "trainer.arguments.packing_strategy=wrapped"],
    "every_n_layers": [
        "trainer.gradient_checkpointing=true",
        "trainer.arguments.activation_checkpointing_kwargs={every_n_layers: 2}",
    ],
}
UNCHANGED = {"gradient_checkpointing", "every_n_layers"}  # less memory, same numbers
STEPS = [
    "action.num_samples=0",
    "trainer.max_steps=4",
    "trainer.warmup_steps=0",
    "trainer.save_strategy=no",
    "action.evaluate_before=false",
]


def adapter(cli, llama, on_tiny, *extra):
    from safetensors.torch import load_file

    outcome = cli(*on_tiny(llama), *STEPS, "trainer.learning_rate=1e-2", *extra)
    assert outcome.code == 0, outcome.err
    return load_file(outcome.run_dir / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("share", ["some", REST])
def test_each_trainer_knob_reaches_training(cli, llama, on_tiny, subtests, share):
    plain = adapter(cli, llama, on_tiny)
    some = list(KNOBS.items())[::3]
    for knob, overrides in some if share == "some" else [item for item in KNOBS.items() if item not in some]:
        with subtests.test(knob):
            turned = adapter(cli, llama, on_tiny, *overrides)
            same = all(torch.allclose(plain[key], turned[key], atol=1e-7) for key in plain)
            assert same == (knob in UNCHANGED)


def test_the_default_schedule_fits_any_number_of_steps(cli, llama, on_tiny, subtests):
    """It warms up for a share of all steps; one step alone is taken at the full rate, or it would learn nothing."""
    for steps, warmup in {1: 0, 2: 1, 3: 1, 8: 2}.items():
        with subtests.test(str(steps)):
            run = cli(*on_tiny(llama), "action.num_samples=0", f"trainer.max_steps={steps}", "trainer.logging_steps=1")
            assert run.code == 0, run.err
            rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
            assert [row["learning_rate"] for row in rows].index(0.01) == warmup


def test_the_first_step_is_logged_whatever_the_interval(cli, llama, on_tiny):
    run = cli(*on_tiny(llama), "action.num_samples=0", "trainer.max_steps=7", "trainer.logging_steps=5")
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 5, 7]


def test_a_process_that_sees_several_gpus_trains_as_on_one(cli, llama, on_tiny, tmp_path, monkeypatch):
    """Trainer would split each batch over all of them, and so multiply it; TRL refuses."""
    bert = encoders.build_bert(tmp_path / "bert")
    pairs = [{"prompt": f"is {n} even?", "chosen": "yes" if n % 2 else "no", "rejected": "maybe"} for n in range(24)]
    few = ["trainer.max_steps=2", "action.num_samples=0"]
    runs = {
        "answers": [*on_tiny(llama), *few],
        "labels": ["model=pretrained", f"model.name_or_path={bert}", "task=spanish_sentiment", "task.data.num_test_rows=8", "device=cpu", *few],
        "pairs": [*on_tiny(llama), "task=preferences", f"task.data.path={jsonl(tmp_path / 'pairs.jsonl', pairs)}", *few],
    }  # fmt: skip
    for name, args in runs.items():
        alone = cli(*args, f"hydra.run.dir={name}")
        assert alone.code == 0, alone.err

    def set_up_two(arguments):
        device = TrainingArguments._set_up_one(arguments)
        arguments._n_gpu = 2
        return device

    set_up = functools.cached_property(set_up_two)
    set_up.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_set_up_one", vars(TrainingArguments)["_setup_devices"].func, raising=False)
    monkeypatch.setattr(TrainingArguments, "_setup_devices", set_up)
    for name, args in runs.items():
        among_two = cli(*args, f"hydra.run.dir={name}-2")
        assert among_two.code == 0, among_two.err
        one, two = (tmp_path / folder / "adapter/adapter_model.safetensors" for folder in (name, f"{name}-2"))
        assert one.read_bytes() == two.read_bytes(), name


def test_checkpoints_are_kept_as_many_as_asked(cli, llama, on_tiny):
    outcome = cli(
        *on_tiny(llama),
        "trainer.max_steps=6",
        "trainer.warmup_steps=0",
        "trainer.save_steps=1",
        "trainer.save_total_limit=3",
    )
    assert len(list((outcome.run_dir / "checkpoints").glob("checkpoint-*/complete"))) == 3


def test_epochs_decide_when_steps_do_not(cli, llama, on_tiny):
    outcome = cli(
        *on_tiny(llama), "trainer=epochs", "trainer.num_train_epochs=2", "trainer.gradient_accumulation_steps=1"
    )
    assert outcome.record()["training"]["steps"] == 2 * 32 // 4
    whole = "16 steps × 4 rows = 64 rows (2.00 epochs of 32)"
    assert whole in outcome.err and re.search(f"learned +{re.escape(whole)}", outcome.out + outcome.err)
    assert "never learned" not in outcome.err
    spec = peftrun.load(*on_tiny(llama), "trainer.max_steps=60")
    assert "760 of 1,000 training rows are never learned" in (epochs.describe_unseen_rows(spec, 1000) or "")
    assert (
        "trainer.max_steps=250" in (epochs.describe_unseen_rows(spec, 1000) or "")
        and epochs.describe_unseen_rows(spec, 480) is None
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["trainer.lr_scheduler_kwargs={num_cycles: 2}"],
            "trainer.lr_scheduler_kwargs.num_cycles=2: is not a setting of",
        ),
        (["trainer.lr_scheduler_type=cosine_with_min_lr"], "type 'trainer.lr_scheduler_kwargs={min_lr_rate: 0.1}'"),
    ],
)
def test_a_setting_that_is_not_the_schedules_is_refused(overrides, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        peftrun.load(*overrides)


def of_unlike_rows(kind, folder, llama, on_tiny):
    """Overrides of a training on rows of unlike length, or of unlike batches."""
    if kind == "texts":
        return encoders.on_texts(encoders.build_bert(folder / "bert"), folder)
    pairs = [{"prompt": f"{n}?", "completion": " ".join(["yes"] * (1 + n % 7))} for n in range(30)]
    return [*on_tiny(llama), f"task.data.path={jsonl(folder / 'pairs.jsonl', pairs)}"]


DROPS_LAST = ["trainer.arguments.dataloader_drop_last=true"]


@cases("kind", ["answers", "texts"])
def test_the_validation_loss_is_one_mean_whatever_its_batches(kind, cli, tmp_path, llama, on_tiny):
    own = of_unlike_rows(kind, tmp_path, llama, on_tiny)
    measured = [
        "task.data.num_validation_rows=7",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "trainer.max_steps=1",
    ]
    found = []
    # 8: more rows than there are; dataloader_drop_last is about training rows
    for size, more in ((1, []), (4, []), (4, DROPS_LAST), (8, DROPS_LAST)):
        done = cli(*own, *STEPS, *measured, f"trainer.per_device_eval_batch_size={size}", *more)
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
        found += [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)

"""The seed reaches everything that is drawn, and nothing else is drawn: changed by another seed, the same by the same. And determinism."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY_STEPS, build_llama

from peftrun.composition import compose
from peftrun.io.atomic_files import hash_file
from peftrun.models.device import resolve_device
from peftrun.system import determinism
from peftrun.training import session

sys.path.insert(0, str(Path(__file__).parent / "actions"))
from test_replay import preferences

from peftrun.composition.spec import build_spec

# Nothing is drawn in full training but the order of the rows, and not even that where they stand in the file's order.
WHOLE = ["lora=none", "trainer.learning_rate=1e-3"]
IN_ORDER = [*WHOLE, "trainer.train_sampling_strategy=sequential"]
STILL = "trainer.learning_rate=1e-30"  # what is saved is where training began


def product(run):
    """What a run leaves, as one text."""
    rows = run.run_dir / "generations.jsonl"
    found = sorted(run.run_dir.glob("*/*.safetensors"))
    return rows.read_text() if rows.is_file() else hash_file(found[0])


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory):
    return build_llama(tmp_path_factory.mktemp("models") / "with-dropout", attention_dropout=0.2)


CASES = {
    "adapter initialisation": ["action=save"],
    "adapter initialisation, trained": [STILL, *TINY_STEPS],
    "order of the rows": [*WHOLE, *TINY_STEPS],
    "dropout of the adapter": [*TINY_STEPS, "lora.lora_dropout=0.3"],
    "dropout of the base": [*IN_ORDER, *TINY_STEPS],
    "noise on the embeddings": [*IN_ORDER, *TINY_STEPS, "trainer.neftune_noise_alpha=5"],
    "rows grouped by length": [*WHOLE, *TINY_STEPS, "trainer.train_sampling_strategy=group_by_length"],
    "generation": ["action=generate", "action.prompt=hello", "action.temperature=1", "action.max_new_tokens=12"],
    "calibration rows": [
        "lora=eva",
        "lora.calibration_rows=4",
        "trainer.per_device_train_batch_size=2",
        STILL,
        *TINY_STEPS,
    ],
}


QUICK = ("adapter initialisation", "order of the rows", "dropout of the adapter", "generation")
SLOW = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", SLOW)
def test_it_is_changed_by_another_seed_and_the_same_by_the_same(cli, llama, with_dropout, on_tiny, case):
    base = with_dropout if case == "dropout of the base" else llama
    runs = [cli(*on_tiny(base), *CASES[case], f"seed={seed}") for seed in (7, 7, 8)]
    assert not [run.err for run in runs if run.code]
    first, same, other = map(product, runs)
    assert first == same != other


def test_where_nothing_is_drawn_the_seed_changes_nothing(cli, llama, on_tiny):
    first, other = (product(cli(*on_tiny(llama), *IN_ORDER, *TINY_STEPS, f"seed={seed}")) for seed in (7, 8))
    assert first == other


def test_which_rows_are_held_out_is_not_the_seeds_to_say(cli, llama, on_tiny):
    first, other = (cli(*on_tiny(llama), "action=evaluate", f"seed={seed}").record()["data"] for seed in (7, 8))
    assert first == other


@pytest.mark.slow
def test_workers_that_load_rows_change_nothing(cli, llama, on_tiny):
    workers = [
        product(cli(*on_tiny(llama), *TINY_STEPS, "lora.lora_dropout=0.3", f"trainer.dataloader_num_workers={count}"))
        for count in (0, 2, 2)
    ]
    assert len(set(workers)) == 1


def test_the_seed_chooses_the_calibration_rows(tmp_path, llama, on_tiny):
    def chosen(seed):
        given = [
            *on_tiny(llama),
            "lora=eva",
            "lora.calibration_rows=4",
            "trainer.per_device_train_batch_size=2",
            f"seed={seed}",
        ]
        spec = build_spec(compose.compose_run(given).cfg)
        return [
            batch["input_ids"].tolist()
            for batch in session.build_init_data(session.prepare_session(spec, tmp_path)).batches
        ]

    assert chosen(7) == chosen(7) != chosen(8)
    assert [len(batch) for batch in chosen(7)] == [2, 2]


@pytest.mark.slow
def test_grpo_draws_its_answers_by_the_seed(cli, tmp_path, llama):
    given = preferences("grpo", llama, tmp_path)
    rows = tmp_path / "grpo.jsonl"
    rows.write_text('{"q": "Is it?", "a": "yes"}\n' * 40)  # one prompt, so that the order of the rows says nothing
    given += ["task.data.deduplicate=false", STILL]

    def rewards(seed):
        file = cli(*given, f"seed={seed}").run_dir / "metrics.jsonl"
        return [json.loads(line)["reward"] for line in file.read_text().splitlines()]

    assert rewards(7) == rewards(7) != rewards(8)


# Determinism


def on_cpu(wanted):
    return build_spec(compose.compose_run(["device=cpu", f"device.deterministic={wanted}"]).cfg).device


def test_deterministic_algorithms_are_asked_for_and_given_up_again(monkeypatch):
    for name in determinism.ENV_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(determinism, "_VARIABLES_SET", set())
    resolve_device(on_cpu("true"))
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert {name: os.environ[name] for name in determinism.ENV_VARIABLES} == determinism.ENV_VARIABLES
    resolve_device(on_cpu("false"))
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert not determinism.ENV_VARIABLES.keys() & os.environ.keys()
    assert (
        determinism.describe_determinism()["deterministic"] is False
        and determinism.describe_determinism()["not_deterministic"] is None
    )


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(determinism, "_VARIABLES_SET", set())
    for wanted in ("true", "false"):
        resolve_device(on_cpu(wanted))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def unpool():
    """An operation of which torch says on the CPU too that it is not deterministic."""
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    torch.nn.functional.max_unpool2d(pooled, places, 2)


def test_what_cannot_be_deterministic_is_heard_in_every_run_and_not_shown(capfd):
    for _ in range(2):  # torch's own filter would show it once
        resolve_device(on_cpu("true"))
        assert determinism.describe_determinism()["not_deterministic"] == []
        unpool()
        torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))
        assert determinism.describe_determinism()["not_deterministic"] == ["max_unpooling2d_forward_out", "put_"]
    resolve_device(on_cpu("false"))
    unpool()
    assert determinism.describe_determinism()["not_deterministic"] is None
    assert capfd.readouterr().err == ""


def test_other_warnings_are_shown_as_ever():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        determinism.set_deterministic(True)
        warnings.warn("something else", stacklevel=1)
        unpool()
    assert [str(one.message) for one in seen] == ["something else"]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True, "
         "warn_only=True)'. You can file an issue", "cumsum_cuda_kernel"),
        ("Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly enable determinism call "
         "torch.use_deterministic_algorithms(True, warn_only=False).", "Memory Efficient attention"),
        ("Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
         "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS and you "
         "have CUDA >= 10.2.", "CuBLAS"),
        ("a deterministic implementation", None),
    ],
)  # fmt: skip
def test_torch_says_it_in_these_words(message, name):
    """Those of a GPU are quoted from torch's source, since none is needed to run these tests."""
    assert determinism.parse_op_name(message) == name


def test_the_record_tells_what_was_not_deterministic(cli, llama, on_tiny, monkeypatch):
    from peftrun.training import fit as loop

    fit = loop.fit
    monkeypatch.setattr(loop, "fit", lambda *args, **more: (unpool(), fit(*args, **more))[1])
    run = cli(*on_tiny(llama), *TINY_STEPS)
    assert run.record()["numerics"]["not_deterministic"] == ["max_unpooling2d_forward_out"]
    free = cli(*on_tiny(llama), *TINY_STEPS, "device.deterministic=false")
    assert free.record()["numerics"]["deterministic"] is False
    assert product(free) == product(run)  # on this device


def test_a_run_that_computes_nothing_tells_nothing(cli, trained):
    assert "numerics" not in cli("action=inspect", f"adapter={trained}").record()

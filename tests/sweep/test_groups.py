"""Who is trained together, and the reason of each who is not."""

import dataclasses

import pytest
from cases import cases, where_installed
from hydra import compose, initialize_config_dir

from peftrun.composition.spec import build_spec_from_values
from peftrun.config import paths
from peftrun.config import values as config
from peftrun.sweep import groups
from peftrun.sweep.cells import Cell, compute_cell_id


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        yield


def cell(*overrides, number=0):
    values = config.resolve_values(compose("config", overrides=list(overrides)))
    spec = build_spec_from_values(values)
    return Cell([number], list(overrides), dataclasses.asdict(spec), spec, id=compute_cell_id(values))


def test_everything_of_an_adapter_and_its_training_may_differ():
    together = [
        cell(), cell("lora.r=16", "lora.lora_dropout=0.1", "lora.lora_alpha=2.5"), cell("lora=rslora", "seed=7"), cell("lora.target_modules=[q_proj]"),
        cell("trainer.learning_rate=1e-5", "trainer.lr_scheduler_type=cosine", "trainer.max_steps=90", "trainer.max_grad_norm=0"),
        cell("trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=2"),
        cell("lora.init_lora_weights=gaussian", "lora.rank_pattern={q_proj: 2}"), cell("trainer.optim=sgd"),
        cell("task.max_length=32", "task.data.num_train_rows=50"), cell("task=instruction", "task.data.source=hub", "task.data.path=a/b"),
    ]  # fmt: skip
    (found,) = groups.group_cells(together)
    assert found.cells == together and found.reason == ""


ALONE = {
    "lora=ia3": "lora.method=ia3",
    "model.quantization=int8": "model.quantization=int8",
    "lora=none": "lora.method=none",
    "lora=dora": "lora.use_dora=true",
    "lora=pissa": "lora.init_lora_weights=pissa_niter_16",
    "lora=olora": "lora.init_lora_weights=olora",
    "lora=lora_fa": "lora.lora_fa=true",
    "lora=loraplus": "lora.loraplus_lr_ratio=16.0",
    "trainer.optim=adamw_8bit": "trainer.optim=adamw_8bit",
    "lora=velora": "lora.velora_config=VeloraSpec",
    "lora=bdlora": "lora.use_bdlora=BdLoraSpec",
    "lora.bias=all": "lora.bias=all",
    "++lora.ensure_weight_tying=true": "lora.ensure_weight_tying=true",
    "++lora.kasa_config={}": "lora.kasa_config={}",
    "lora.target_modules=null": "lora.target_modules=null",
    "lora.init_lora_weights=mica": "lora.init_lora_weights=mica",
    "lora.lora_bias=true": "lora.lora_bias=true",
    "lora.modules_to_save=[lm_head]": "lora.modules_to_save=[lm_head]",
    "lora.trainable_token_indices=[5]": "lora.trainable_token_indices=[5]",
    "experiment=dpo": "task.type=preference",
    "trainer.packing=true": "trainer.packing=true",
    "trainer.padding_free=true": "trainer.padding_free=true",
    "trainer.torch_compile=true": "trainer.torch_compile=true",
    "trainer.gradient_checkpointing=true": "trainer.gradient_checkpointing=true",
    "trainer.label_smoothing_factor=0.1": "trainer.label_smoothing_factor=0.1",
    "trainer.neftune_noise_alpha=5": "trainer.neftune_noise_alpha=5.0",
    "action=evaluate": "action=evaluate",
    "action.resume=auto": "action.resume=auto",
}


@cases("override", ALONE, every=4)
def test_what_shapes_the_forward_pass_in_another_way_stands_alone(override):
    with where_installed():
        odd = cell(override)
    found = groups.group_cells([cell(), odd, cell("seed=1")])
    assert [len(one.cells) for one in found] == [2, 1]
    assert found[1].cells == [odd] and found[1].reason == ALONE[override]


OTHER_BASE = (["model=smollm2"], ["model.quantization=nf4"], ["device=cpu"], ["device.dtype=float32"])


@pytest.mark.slow
@cases("overrides", OTHER_BASE, ids=" ".join)
def test_another_base_or_device_is_another_group(overrides):
    found = groups.group_cells([cell(), cell(*overrides), cell("seed=1"), cell(*overrides, "seed=1")])
    assert [len(one.cells) for one in found] == [2, 2] and not any(one.reason for one in found)


def test_labels_of_a_classifier_are_part_of_its_base():
    sentiment = ["model=pretrained", "model.name_or_path=org/encoder", "task=spanish_sentiment"]
    found = groups.group_cells(
        [cell(*sentiment), cell(*sentiment, "seed=1"), cell(*sentiment, "task.label_names=[b,a]")]
    )
    assert [len(one.cells) for one in found] == [2, 1]
    assert found[1].reason == groups.ONLY_ONE


def test_cells_that_were_refused_are_in_no_group():
    assert groups.group_cells([Cell([0], [], problems=("no",))]) == []

"""Fields of PEFT's configs that no file in `conf/lora` shows: taken as PEFT has them, in effect, saved, loaded and merged."""

import dataclasses
import json
import shlex
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from cases import cases
from peft import LoraConfig, PeftType, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from test_knobs import METHODS
from test_methods import CPU, FITTING, rows, run_of, train
from typing_extensions import is_typeddict

from peftrun.actions import merge
from peftrun.adapters import attach, load, save
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.config.schema import lora, method_traits, peft_fields
from peftrun.errors import AdapterError, ConfigError
from peftrun.models.base import load_base

QV = "lora.target_modules=[q_proj,v_proj]"
PATTERN = ["lora.layers_to_transform=[1]", "lora.layers_pattern=layers"]
LIVES = {  # what is given → what PEFT's merge of it is refused for; None: it merges
    ("lora", "lora.kasa_config={beta: 0.5}"): None,
    ("prompt_tuning", "lora.prompt_tuning_init=TEXT", "lora.prompt_tuning_init_text='Is it even?'"): "cannot merge",
    ("oft", "lora.oft_block_size=0", "lora.r=4"): None,
    ("osf", "lora.effective_rank=null", "lora.rank_pattern={q_proj: 4, v_proj: 0.25}"): None,
    ("miss", "lora.init_weights=mini", "lora.mini_r=2", "lora.exclude_modules=[o_proj]"): None,
    ("lora", "lora.init_lora_weights=mica"): None,
    ("lora", "lora.lora_alpha=3.5", "lora.alpha_pattern={v_proj: 2.5}"): None,
    ("lora", "lora.target_modules=null"): None,
    ("lora", QV, *PATTERN): None,
    ("lora", QV, "lora.layers_to_transform=1", "lora.layers_pattern=[layers]"): None,
    ("ia3", "lora.feedforward_modules=.*down_proj", "lora.exclude_modules=.*k_proj"): None,
    ("lora", "lora.layer_replication=[[0,2],[1,2]]"): "layer_replication",
    ("lora", "lora.monteclora_config={num_samples: 2, kl_loss_weight: 0.5}"): None,
    ("lora", "lora.modules_to_save=[embed_tokens]", "lora.ensure_weight_tying=true"): None,
    ("lora", "lora.fan_in_fan_out=true"): None,
    ("hira", "lora.fan_in_fan_out=true", "lora.init_weights=gaussian"): None,
    ("adalora", "lora.bias=all", "lora.exclude_modules=[o_proj]"): None,
    ("adamss", "lora.use_asa=true", "lora.init_warmup=0", "lora.mask_interval=1", "lora.asa_target_subspaces=2"): None,
    ("boft", "lora.boft_block_size=0", "lora.boft_block_num=4", "lora.exclude_modules=[q_proj]"): None,
    ("c3a", "lora.init_weights=gaussian"): None,
    ("deft", "lora.para=true", "lora.alpha=16", "lora.exclude_modules=[o_proj]"): None,
    ("delora", "lora.rank_pattern={q_proj: 4}", "lora.lambda_pattern={q_proj: 3}"): None,
    ("frod", "lora.runtime_offload_base_weight=true", "lora.regularization_alpha=0.01"): None,
    ("miss", "lora.init_weights=bat"): None,
    ("prefix_tuning", "lora.init_weights=zero"): "cannot merge",
    ("psoft", "lora.psoft_svd=lowrank", "lora.psoft_orth=false"): None,
    ("shira", "lora.random_seed=null"): None,
    ("supertuning", "lora.sparsity=0.5", "lora.r=4", "lora.lora_alpha=8", "lora.select_top=false"): None,
    ("tinylora", "lora.weight_tying=1.0"): None,
    ("vera", "lora.save_projection=false", *PATTERN, QV): None,
}  # fmt: skip
# PEFT compares a text here with the ends of names letter by letter.
NARROWER = {"ln_tuning": {"modules_to_save": {str}}}
SAME_NUMBERS = {
    "runtime_offload_base_weight",
    "fan_in_fan_out",
    "save_projection",
    "ensure_weight_tying",
    "layers_pattern",
}


@cases("method", list(METHODS), every=4)
def test_fields_and_types_are_those_of_peft(method):
    """Read from the source, as the config of the installed PEFT has them."""
    fields = {one.name: one for one in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())])}
    offered = peft_fields.get_accepted_fields(method)
    refused = {name for name in fields if peft_fields.explain_unsupported(method, name)}
    assert offered.keys() | refused == fields.keys() and not offered.keys() & refused
    assert [name for name, kind in offered.items() if kind is Any] == []
    own = get_type_hints(METHODS[method])
    narrower = {
        name: lacking
        for name in offered.keys() & own
        if (lacking := forms(offered[name]) - forms(own[name]) - {NoneType})
    }
    assert narrower == NARROWER.get(method, {})
    for name in offered.keys() - {one.name for one in dataclasses.fields(METHODS[method])}:
        default = fields[name].default
        if default is not dataclasses.MISSING and default is not None:
            written = json.dumps(getattr(default, "value", default))
            spec = run_of("tiny", f"lora={method}", *FITTING.get(method, []), f"lora.{name}={written}")
            assert getattr(spec.lora, name) == default


def forms(kind: Any) -> set[type]:
    """The Python types that a value of this type may have; a config inside a config is a mapping."""
    if get_origin(kind) is Literal:
        return set(map(type, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return set().union(*map(forms, get_args(kind)))
    found = get_origin(kind) or kind
    return {dict if is_typeddict(found) or dataclasses.is_dataclass(found) else found}


@cases("given", list(LIVES), ids=" ".join, every=10)
def test_whole_life(tmp_path, llama, given):
    """Trained, saved under the name it was given, loaded as it was, and merged where PEFT can; otherwise than without the field."""
    option, *overrides = given
    fitting = [text for text in FITTING.get(option, []) if text.partition("=")[0] not in " ".join(overrides)]
    it = trained(llama, [f"lora={option}", *fitting, *overrides], tmp_path)
    saved = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())
    asked = {key: getattr(it.spec, key) for key in peft_fields.get_extra_peft_fields(it.spec)}
    for key, value in json.loads(json.dumps(asked)).items():
        if isinstance(value, dict):
            assert value.items() <= saved[key].items()
        else:
            assert saved[key] == value or key == "fan_in_fan_out"
    if not SAME_NUMBERS & set(asked):
        plain = trained(llama, [f"lora={option}", *FITTING.get(option, [])], None)
        assert not all(same(it.weights, plain.weights, name) for name in it.weights.keys() | plain.weights.keys())
    spec = run_of(llama, "action=merge", "action.num_eval_rows=0", f"adapter={tmp_path / 'adapter'}")
    _, (proof,) = load.load(
        load_base(spec.model, CPU), resolve_adapters({"default": str(tmp_path / "adapter")}), None, False
    )
    assert proof.saved_difference < 2e-4 and proof.effect["max_logit_difference"] > 1e-4
    if LIVES[given]:
        with pytest.raises(AdapterError, match=LIVES[given]):
            merge.run(spec, tmp_path)
    else:
        figures = merge.run(spec, tmp_path).facts["merge"]
        assert figures["max_logit_difference"] < 0.1 * figures["max_logit_difference_from_base"]


def trained(llama, overrides, out_dir):
    """An adapter after two steps, saved where there is a place."""
    spec = run_of(llama, *overrides)
    base = load_base(spec.model, CPU)
    it = SimpleNamespace(base=base, spec=spec.lora)
    it.net = attach.attach_adapter(base, spec.lora, 0, attach.InitData(rows(base), 10))
    with save.keep_untrained(it.net, it.spec, out_dir) as initial:
        train(it)
        if out_dir:
            save.save(it.net, base, out_dir / "adapter", untrained=set(), initial=initial)
    it.weights = {name: one.detach().clone() for name, one in it.net.named_parameters() if one.requires_grad}
    return it


def same(one, other, name):
    return name in one and name in other and torch.equal(one[name], other[name])


# The 103 adapter_config.json of PEFT's own method comparison (huggingface/peft@5d602fd): name, method, and the fields that differ
# from PEFT's defaults, without those that follow from the base model or the number of steps.
COMPARISON = [json.loads(line) for line in (Path(__file__).parent / "fixtures" / "peft_method_comparison.jsonl").open()]
OF_THE_RUN = {*peft_fields.SET_BY_PEFTRUN, *peft_fields.OF_THE_MODEL, "total_step"}


@cases("wanted", COMPARISON, ids=lambda wanted: wanted["name"], every=8)
def test_a_config_of_pefts_comparison_is_saved_as_it_is(tmp_path, llama, wanted):
    """Typed field by field; adapter_config.json then equals PEFT's own in every field."""
    method, fields = wanted["method"], {key: value for key, value in wanted.items() if key not in ("name", "method")}
    run, steps = ({"total_step": 5000}, ["trainer.max_steps=5000"]) if method == "adalora" else ({}, [])
    theirs = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())](**fields, **run)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    theirs_saved = json.loads((tmp_path / "theirs" / ADAPTER_CONFIG).read_text())
    option = dataclasses.asdict(run_of(llama, f"lora={method}", *REQUIRED.get(method, [])).lora)
    typed = {
        key: value
        for key, value in theirs_saved.items()
        if key not in OF_THE_RUN and (key in fields or (key in option and option[key] != value))
    }
    spec = run_of(llama, f"lora={method}", *steps, *(f"lora.{key}={written(value)}" for key, value in typed.items()))
    ours = attach.build_peft_config(load_base(spec.model, CPU), spec.lora, None)
    ours.save_pretrained(str(tmp_path / "ours"))
    saved = json.loads((tmp_path / "ours" / ADAPTER_CONFIG).read_text())
    same_kind = {key: sorted(value) if key.endswith("modules") and value else value for key, value in saved.items()}
    assert {
        key: (same_kind[key], value)
        for key, value in theirs_saved.items()
        if key not in OF_THE_RUN and same_kind[key] != (sorted(value) if key.endswith("modules") and value else value)
    } == {}


REQUIRED = {"trainable_tokens": ["lora.token_indices=[1]"]}


def written(value: Any) -> str:
    """A value in Hydra's grammar, which has no quotes around names in braces."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


REFUSED = {  # what is typed → what the line says
    "lora.use_qalorra=true": "type lora.use_qalora=true",
    "lora.kasa_config={betta: 0.1}": "type lora.kasa_config.beta=0.1",
    "lora.kasa_config={beta: much}": "lora.kasa_config.beta=much: must be a valid number",
    "lora.ensure_weight_tying=maybe": "type lora.ensure_weight_tying=true or lora.ensure_weight_tying=false",
    "lora.lora_alpha=0": "lora.lora_alpha=0: must be greater than 0; type lora.lora_alpha=32",
    "lora.task_type=CAUSAL_LM": "lora.task_type=CAUSAL_LM: is a field of PEFT that peftrun does not support",
    "lora.arrow_config={top_k: 1}": "other adapters",
    "lora=adalora lora.total_step=10": "the run's own number of steps",
    "lora=adalora lora.use_dora=true": "PEFT does not use it in adalora",
    "lora=adalora lora.init_lora_weights=pissa": "lora.init_lora_weights=pissa: must be a valid boolean",
    "lora=hira lora.rank_pattern={q_proj: 4}": "PEFT does not use it in hira",
    "lora=p_tuning lora.token_dim=8": "PEFT reads it from the base model",
    "lora=prefix_tuning lora.init_weights=one": "type lora.init_weights=zero",
    "lora=vera lora.lora_alpha=4": "lora.lora_alpha=4: there is no such key",
    "lora=none lora.task_type=CAUSAL_LM": "lora.task_type=CAUSAL_LM: there is no such key",
    "lora=pissa lora.kasa_config={}": "lora.kasa_config: cannot be combined with lora.init_lora_weights=pissa",
    "lora=lora_fa lora.kasa_config={}": "LoRA-FA's optimizer supports only pairs of A and B",
    "experiment=dpo lora.kasa_config={}": "task.objective has its own loss",
}


@cases("typed", list(REFUSED))
def test_one_line_says_what_is_wrong_with_a_field(typed):
    """Checked without PEFT, by the types that PEFT gives its fields."""
    with pytest.raises(ConfigError) as refused:
        run_of("tiny", *shlex.split(typed.replace("{", "'{").replace("}", "}'")))
    lines = [line for line in refused.value.lines if line.startswith("lora.")]
    assert len(lines) == 1 and REFUSED[typed] in lines[0], refused.value.lines


def test_the_traits_of_methods_and_initializations_are_those_of_peft():
    types = {kind.value.lower(): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert method_traits.METHODS.keys() - {"none"} <= types.keys()
    for name, kind in types.items():
        traits = method_traits.get_method_traits(kind)
        assert traits == method_traits.get_method_traits(kind.value) == method_traits.get_method_traits(name)
        assert traits.virtual_tokens == issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[kind], PromptLearningConfig), name
        assert traits.merges == hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(kind), "merge_and_unload"), name
    assert {init.removesuffix(r"_\d+") for init in lora.INITS[2:-2].split("|")} == method_traits.INITS.keys()
    names = get_args(next(part for part in get_args(get_type_hints(LoraConfig)["init_lora_weights"]) if get_args(part)))
    assert {init.partition("_[")[0] for init in names} <= method_traits.INITS.keys()
    assert method_traits.get_init_traits("pissa_niter_4") == method_traits.INITS["pissa_niter"]

"""Every option of group `lora`: what only it does, then its whole life: trained, saved, reloaded as it was, merged where PEFT can."""

import math

import pytest
import torch
from conftest import TINY_STEPS
from safetensors.torch import load_file

from peftrun.actions import merge
from peftrun.adapters import attach, load, optimizers, parent, probes, save
from peftrun.artifacts import adapter_settings
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition.spec import build_spec
from peftrun.config import paths
from peftrun.errors import AdapterError
from peftrun.models.base import load_base
from peftrun.models.device import Device

# What a tiny Llama (inputs 32 and 64, outputs 16, 32 and 64) needs said otherwise.
FITTING = {
    "adalora": ["lora.init_r=6", "lora.target_r=3", "lora.tinit=1", "lora.tfinal=1"],
    "adaption_prompt": ["lora.adapter_layers=2"],
    "adamss": ["lora.r=4"],
    "alora": ["lora.alora_invocation_tokens='<|im_start|>assistant'"],
    "bdlora": ["lora.use_bdlora.nblocks=2"],
    "c3a": ["lora.block_size=16"],
    "fourierft": ["lora.n_frequency=50"],
    "oft": ["lora.oft_block_size=16"],
    "psoft": ["lora.r=8"],
    "randlora": ["lora.r=8"],
    "road": ["lora.group_size=16"],
    "trainable_tokens": ["lora.token_indices=[70,71,72]"],
    "velora": ["lora.velora_config.num_groups=8"],
    "vblora": ["lora.vector_length=16", "lora.num_vectors=16"],
    "waveft": ["lora.n_frequency=50"],
}
NEEDS_MORE = {"lora_moe", "loftq", "none"}  # a mixture of experts, a 4-bit base: tests of their own
NOT_CONTINUED = {"adalora", "p_tuning"}
NOT_MERGED = {"adaption_prompt", "alora", "beft", "cartridge", "lily", "p_tuning", "prefix_tuning", "prompt_tuning"}
STARTS_APART = {"c3a", "cartridge", "fourierft", "p_tuning", "prefix_tuning", "prompt_tuning", "unilora", "vblora"}
CPU = Device("cpu", torch.float32, "")
OPTIONS = sorted(set(paths.list_group_options("lora")) - NEEDS_MORE)
QUICK = ("lora", "ia3", "prompt_tuning")  # a kind each


def mark_slow(kept):
    """The options; those that are not kept are slow ones."""
    return [option if option in kept else pytest.param(option, marks=pytest.mark.slow) for option in OPTIONS]


def run_of(model, *overrides):
    from peftrun.composition.compose import compose_run

    return build_spec(compose_run(["model=pretrained", f"model.name_or_path={model}", *overrides]).cfg)


def rows(base, count=8, before=""):
    ids = [base.tokenizer(f"{before}Is {n} even? yes no good bad")["input_ids"][:12] for n in range(count)]
    batch = torch.tensor(ids)
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch}]


class Fresh:
    """A fresh adapter on the tiny Llama, and the base's weights before it."""

    def __init__(self, llama, option):
        spec = run_of(llama, f"lora={option}", *FITTING.get(option, []))
        self.base = load_base(spec.model, CPU)
        self.before = {name: value.clone() for name, value in self.base.model.named_parameters()}
        self.plain = probes.compute_probe_logits(self.base.model, self.base.tokenizer)
        self.spec = spec.lora
        self.net = attach.attach_adapter(self.base, spec.lora, 0, attach.InitData(rows(self.base), 10))
        self.names = {name for name, value in self.net.named_parameters() if value.requires_grad}
        self.config = self.net.peft_config["default"]

    @property
    def q(self):
        return self.net.base_model.model.model.layers[0].self_attn.q_proj

    def weight(self, part):
        return getattr(self.q, part)["default"].weight

    def base_changed(self):
        return not torch.equal(self.q.base_layer.weight, self.before["model.layers.0.self_attn.q_proj.weight"])

    def all_named(self, *parts):
        return bool(self.names) and all(any(part in name for part in parts) for name in self.names)

    def sizes(self, part):
        return {tuple(value.shape) for name, value in self.net.named_parameters() if f"q_proj.{part}" in name}


def orthonormal(matrix):
    return torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-4)


EFFECTS = {  # option → its effect in words (the table of benchmarks/methods.py), and the check of it
    "lora": ("scaling alpha / r, base untouched, only A and B trained", lambda it: it.q.scaling["default"] == 32 / 8 and not it.base_changed() and it.all_named("lora_A", "lora_B")),
    "rslora": ("scaling alpha / sqrt(r)", lambda it: math.isclose(it.q.scaling["default"], 32 / math.sqrt(8))),
    "dora": ("a magnitude for each output", lambda it: it.q.lora_magnitude_vector["default"].weight.shape == (32,)),
    "pissa": ("its part taken out of the base, B not zero", lambda it: it.base_changed() and it.weight("lora_B").abs().sum() > 0),
    "olora": ("its part taken out of the base, B orthonormal", lambda it: it.base_changed() and orthonormal(it.weight("lora_B").T)),
    "eva": ("ranks differ by layer, A orthonormal, base untouched", lambda it: not it.base_changed() and len(set(it.config.rank_pattern.values()) | {8}) > 1 and orthonormal(it.weight("lora_A"))),
    "corda": ("its part taken out of the base, B not zero", lambda it: it.base_changed() and it.weight("lora_B").abs().sum() > 0),
    "lora_ga": ("its part taken out of the base, B not zero", lambda it: it.base_changed() and it.weight("lora_B").abs().sum() > 0),
    "loraplus": ("B learns 16 times as fast as A", lambda it: rates(it) == {"lora_A": 1e-3, "lora_B": pytest.approx(16e-3)}),
    "lora_fa": ("only B trained, A as drawn", lambda it: it.all_named("lora_B") and it.weight("lora_A").abs().sum() > 0),
    "alora": ("called by the tokens that open the assistant's turn", lambda it: it.base.tokenizer.decode(it.config.alora_invocation_tokens) == "<|im_start|>assistant"),
    "velora": ("less kept for the backward pass than by LoRA", lambda it: kept_by_backward(it) < kept_by_backward(Fresh(it.base.folder, "lora"))),
    "bdlora": ("B block-diagonal: half as wide", lambda it: it.weight("lora_B").shape[1] * 2 == 8),
    "lora_rank_pattern": ("q_proj has rank 16 and scaling 64 / 16", lambda it: it.weight("lora_A").shape[0] == 16 and it.q.scaling["default"] == 64 / 16),
    "lora_trainable_tokens": ("some embeddings trained beside A and B", lambda it: any("trainable_tokens_delta" in name for name in it.names) and any("lora_A" in name for name in it.names)),
    "adalora": ("a singular value for each rank, total_step the run's own", lambda it: it.q.lora_E["default"].shape == (6, 1) and it.config.total_step == 10),
    "adamss": ("only its own factors trained", lambda it: it.all_named("adamss")),
    "adaption_prompt": ("only prompts and their gates trained", lambda it: it.all_named("adaption_prompt", "adaption_gate")),
    "beft": ("only a bias for each module", lambda it: it.sizes("beft_bias") == {(1, 32)} and it.all_named("beft_bias")),
    "boft": ("butterfly blocks of 4 × 4", lambda it: it.sizes("boft_R") == {(1, 8, 4, 4)}),
    "c3a": ("circulant kernels of 16", lambda it: it.sizes("c3a_kernel") == {(2, 2, 16)}),
    "cartridge": ("19 virtual tokens", lambda it: it.net.prompt_encoder["default"].trainable_embedding.shape[0] == 19),
    "deft": ("a projection P and a factor R", lambda it: it.sizes("deft_P") == {(32, 8)} and it.sizes("deft_R") == {(8, 32)}),
    "delora": ("one strength lambda a layer", lambda it: it.sizes("delora_lambda") == {(1,)}),
    "fourierft": ("n_frequency coefficients of a spectrum", lambda it: it.sizes("fourierft_spectrum") == {(50,)}),
    "frod": ("only lambdas trained", lambda it: it.all_named("frod_lambda")),
    "glora": ("only its own supports trained", lambda it: it.all_named("glora_")),
    "gralora": ("A in k blocks", lambda it: it.sizes("gralora_A") == {(2, 16, 8)}),
    "hira": ("A of rank 16, multiplied into the weight", lambda it: it.sizes("hira_A") == {(16, 32)}),
    "hra": ("r reflections", lambda it: it.sizes("hra_u") == {(32, 8)}),
    "ia3": ("only scales trained, feed-forward ones on the input", lambda it: it.all_named("ia3_l") and it.net.base_model.model.model.layers[0].mlp.down_proj.is_feedforward),
    "lily": ("only its own factors trained", lambda it: it.all_named("lily_")),
    "ln_tuning": ("only normalisations trained", lambda it: it.all_named("ln_tuning_layers")),
    "loha": ("two products of low rank", lambda it: it.sizes("hada_w1_a") == {(32, 8)}),
    "lokr": ("only Kronecker factors trained", lambda it: it.all_named("lokr_w")),
    "miss": ("only one block matrix trained", lambda it: it.all_named("miss_block")),
    "oft": ("rotations of blocks of 16", lambda it: it.sizes("oft_R") == {(2, 120)}),
    "osf": ("only the low directions trained", lambda it: it.all_named("_low")),
    "p_tuning": ("20 virtual tokens through an encoder", lambda it: it.net.prompt_encoder["default"].embedding.weight.shape == (20, 32) and any("mlp_head" in n for n in it.names)),
    "peanut": ("only its small network trained", lambda it: it.all_named("peanut_")),
    "prefix_tuning": ("keys and values of 20 tokens for every layer", lambda it: it.net.prompt_encoder["default"].embedding.weight.shape == (20, 2 * 2 * 16)),
    "prompt_tuning": ("20 virtual tokens, each started from a word", lambda it: from_vocabulary(it)),  # noqa: PLW0108
    "psoft": ("only its rotation and scales trained", lambda it: it.all_named("psoft_")),
    "pvera": ("only lambdas trained", lambda it: it.all_named("pvera_lambda")),
    "randlora": ("only lambdas and gammas trained", lambda it: it.all_named("randlora_lambda", "randlora_gamma")),
    "road": ("only angles and scales trained", lambda it: it.all_named("road_theta", "road_alpha")),
    "shira": ("r · (in + out) single weights", lambda it: it.sizes("shira_weight") == {(8 * 64,)}),
    "supertuning": ("only chosen weights trained", lambda it: it.all_named("supertuning_values")),
    "tinylora": ("only a few numbers a module trained", lambda it: it.all_named("tinylora_v")),
    "trainable_tokens": ("three embeddings and nothing else", lambda it: {tuple(p.shape) for p in it.net.parameters() if p.requires_grad} == {(3, 32)}),
    "unilora": ("4,096 numbers for the whole model", lambda it: sum(p.numel() for p in it.net.parameters() if p.requires_grad) == 4096),
    "vblora": ("only a bank of vectors and who takes which", lambda it: it.all_named("vblora_logits", "vblora_vector_bank")),
    "vera": ("only lambdas trained", lambda it: it.all_named("vera_lambda")),
    "waveft": ("n_frequency wavelet coefficients", lambda it: it.sizes("waveft_spectrum") == {(50,)}),
}  # fmt: skip


def rates(it):
    """The learning rate of each matrix under the optimiser that the method brings."""
    made = optimizers.build_optimizer(it.net, it.spec, torch.optim.AdamW, {"lr": 1e-3}, 0.0)
    names = {id(value): name for name, value in it.net.named_parameters()}
    return {
        next(part for part in ("lora_A", "lora_B") if part in names[id(one)]): group["lr"]
        for group in made.param_groups
        for one in group["params"]
    }


def kept_by_backward(it):
    """Numbers that a forward pass keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        it.net.train()(**rows(it.base)[0])
    return sum(kept)


def from_vocabulary(it):
    """Each virtual token starts as a token of the vocabulary."""
    made, words = it.net.prompt_encoder["default"].embedding.weight, it.net.word_embeddings.weight
    return len(made) == 20 and all(bool((one == words).all(1).any()) for one in made)


def test_every_adapter_option_has_its_effect_listed():
    options, listed = set(paths.list_group_options("lora")), set(EFFECTS) | NEEDS_MORE
    assert options == listed, f"add to EFFECTS: {sorted(options - listed)}; remove: {sorted(listed - options)}"


@pytest.mark.parametrize("option", mark_slow({*QUICK, *OPTIONS[::4]}))
def test_effect_start_and_whole_life(tmp_path, llama, option):
    """Its own effect; no answer changed by a fresh adapter unless the method starts elsewhere; then trained, saved, reloaded, merged."""
    it = Fresh(llama, option)
    words, holds = EFFECTS[option]
    assert holds(it), (words, sorted(it.names)[:6])
    apart = probes.compare_logits(it.plain, probes.compute_probe_logits(it.net, it.base.tokenizer))[
        "max_logit_difference"
    ]
    if option in STARTS_APART:
        assert apart > 1e-4, f"a fresh {option} changes no answer; take it out of STARTS_APART"
    else:
        assert apart < 2e-4, (
            f"a fresh {option} changes answers, by {apart:.1e}; if its method does, add it to STARTS_APART"
        )
    folder = tmp_path / "adapter"
    with save.keep_untrained(it.net, it.spec, tmp_path) as initial:
        train(it)
        save.save(it.net, it.base, folder, untrained=set(), initial=initial)
    spec = run_of(llama, "action=merge", "action.num_eval_rows=0", f"adapter={folder}")
    _, (proof,) = load.load(load_base(spec.model, CPU), resolve_adapters({"default": str(folder)}), None, False)
    assert proof.saved_difference < 2e-4 and proof.effect["max_logit_difference"] > 1e-4
    check_continued(it, folder, option)
    if option in NOT_MERGED:
        with pytest.raises(AdapterError, match="cannot merge"):
            merge.run(spec, tmp_path)
        assert not (tmp_path / "merged").exists()
    else:
        figures = merge.run(spec, tmp_path).facts["merge"]
        assert figures["max_logit_difference"] < 0.1 * figures["max_logit_difference_from_base"]


def check_continued(it, folder, option):
    """Trained further from its own weights, with the parameters that a fresh one trains; saved again untrained it is the same."""
    (adapter,) = resolve_adapters({"default": str(folder)}).values()
    assert bool(adapter_settings.why_not_continued(adapter)) == (option in NOT_CONTINUED)
    if option in NOT_CONTINUED:
        return
    assert not list(adapter_settings.find_contradictions(adapter, load_spec(it, folder, option)))
    fresh, it.spec = it.names, load_spec(it, folder, option)
    it.base = load_base(run_of(it.base.folder).model, CPU)
    it.net, proof = parent.attach_parent(it.base, adapter, it.spec)
    it.names = {name for name, value in it.net.named_parameters() if value.requires_grad}
    assert it.names == fresh and proof.saved_difference < 2e-4
    copy, further = folder.with_name("copy"), folder.with_name("further")
    save.save(it.net, it.base, copy, untrained=set())
    train(it)
    save.save(it.net, it.base, further, untrained=set())
    parts = [load_file(one / "adapter_model.safetensors") for one in (folder, copy, further)]
    assert parts[0].keys() == parts[1].keys() == parts[2].keys()
    assert all(torch.equal(value, parts[1][key]) for key, value in parts[0].items())
    assert any(not torch.equal(value, parts[2][key]) for key, value in parts[0].items())


def load_spec(it, folder, option):
    """Group `lora` of a training that continues the adapter; of options for the optimizer alone its files hold nothing."""
    import peftrun

    model = ["model=pretrained", f"model.name_or_path={it.base.folder}", "task=sms_spam"]
    typed = [f"lora={option}"] if option in ("lora_fa", "loraplus") else []
    return peftrun.load(*model, f"adapter={folder}", *typed).lora


def train(it, steps=2):
    """A few steps of the method's own optimiser, or of AdamW."""
    learned = [value for value in it.net.parameters() if value.requires_grad]
    settings = {"lr": 1e-2}
    optimizer = optimizers.build_optimizer(it.net, it.spec, torch.optim.AdamW, settings, 0.0) or torch.optim.AdamW(
        learned, **settings
    )
    after_step = attach.get_step_hook(it.net) or (lambda step: None)
    (batch,) = rows(it.base, before=getattr(it.spec, "alora_invocation_tokens", None) or "")
    for step in range(1, steps + 1):
        it.net.train()(**batch).loss.backward()
        optimizer.step()
        after_step(step)
        optimizer.zero_grad()
    it.net.eval()


@pytest.mark.parametrize("option", mark_slow(QUICK))
def test_by_command_lines(cli, llama, on_tiny, option):
    """Trained, reloaded as it was, merged where PEFT can, each by a command line."""
    overrides = [*on_tiny(llama), f"lora={option}", *FITTING.get(option, [])]
    run = cli(*overrides, *TINY_STEPS)
    assert run.code == 0, run.err
    record = run.record()
    assert (
        record["trainable_parameters"] > 0 and record["metrics"]["before"]["loss"] != record["metrics"]["after"]["loss"]
    )
    assert load_file(run.run_dir / "adapter" / "adapter_model.safetensors")
    again = cli(*overrides, "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] < 2e-4
    assert again.record()["metrics"]["loss"] == pytest.approx(record["metrics"]["after"]["loss"], rel=1e-3)
    merged = cli(*overrides, "action=merge", f"adapter={run.run_dir}", "action.num_eval_rows=0")
    if option in NOT_MERGED:
        assert merged.code == 1 and "cannot merge" in merged.err and merged.run_dir is None
    else:
        assert merged.code == 0, merged.err

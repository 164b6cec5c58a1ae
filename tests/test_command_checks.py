"""What is wrong with a command line itself, or with folders it names, is one line; nothing is left behind."""

import shutil

import pytest
from cases import cases
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import peftrun
from peftrun.errors import ConfigError

REFUSED = [
    (["hydra.run.dir=taken"], "hydra.run.dir=taken: taken is a file"),
    (["hydra.run.dir=taken/inside"], "hydra.run.dir=taken/inside: taken is a file"),
    (["-m", "lora.r=2,4", "hydra/launcher=shared_base", "hydra.sweep.dir=taken"], "hydra.sweep.dir=taken: taken is a file"),
    (["-m", "lora.r=2,4", "action=plan", "hydra.sweep.dir=RUN"], "holds a run already"),
    (["lora.r=4,8"], "lora.r=4,8: several values are a sweep; type -m before them: peftrun -m lora.r=4,8"),
    (["-m", "action=template", "path=made", "lora.r=4,8"], "action=template: cannot be swept"),
    (["--config-dir", "outer", "action=check"], "did you mean outer/inner?"),
    (["--config-dir", "empty", "action=check"], "holds none of the groups action, model"),
    (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
    (["lora=dorra"], "did you mean dora? type lora=dora"),
    (["-m", "lora.r=4,8", "hydra/sweeper=optunaa"], "there is no such sweeper; sweepers: basic, optuna"),
    (["action=replay", "runn=RUN"], "did you mean action.run? type action.run="),
    (["hydra.run.dir="], "hydra.run.dir=: names no folder"),
    (["action=evaluate", "model=pretrained", "model.name_or_path=RUN/adapter"], "is an adapter, not a base; type adapter=RUN/adapter"),
    (["action=evaluate", "model=pretrained", "model.name_or_path=RUN"], "is a run with an adapter, not a base; type adapter=RUN"),
    (["hydra.run.dir=/proc/x"], "/proc/x: cannot be created or written (No such file or directory); type hydra.run.dir="),
    (["-m", "lora.r=4", "hydra.sweep.dir=/proc/x"], "/proc/x: cannot be created or written (No such file or directory)"),
    (["hydra.run.dir=RUN", "action.resume=auto"], "omit hydra.run.dir and type action.resume="),
    (["hydra.run.dir=RUN"], "holds a run already; name a folder that does not exist"),
    (["action=serve", "adapter={one: RUN, two: RUN, one: RUN}"], "adapter.one: is given more than once"),
    (["action=inspect", "adapter="], "adapter=: names no folder"),
    (["action=inspect", "adapter={one: ''}"], "adapter.one=: names no folder"),
    (["action=reload", "adapter=[RUN,RUN]"], "must be a mapping {name: VALUE}; type 'adapter={NAME: VALUE}'"),
    (["action.prompt=foo"], "action.prompt=foo: is a key of action=generate; type action=generate, or omit it"),
    (["action=serve", "api_key=our-secret"], "is the name of an environment variable with the secret: type action.api_key_env=VARIABLE"),
    (["action=export", "adapter=RUN", "action.push=maybe"], "type action.push=true or action.push=false"),
    (["action=compare", "rnus=[a, b]"], "type 'action.runs=[a, b]'"),
    (["task.prompt_template={question}"], "type 'task.prompt_template=\"{question}\"'"),
    (["action=generate", "prompt="], "action.prompt=: is empty"),
    (["adapter=~nosuch/x"], "type 'adapter=\"~nosuch/x\"'"),
    (["task.data.mixture={a: {path: ~nosuch/x}}"], "type 'task.data.mixture={a: {path: \"~nosuch/x\"}}'"),
    (["task.prompt_template=~ {q}"], "type 'task.prompt_template=\"~ {q}\"'"),
    (["-m", "seed=1,2", "hydra.run.dir=out"], "hydra.run.dir=out: is the folder of a single run, and -m makes several; type hydra.sweep.dir=out"),
    (["hydra.sweep.dir=out", "action=inspect", "adapter=RUN"], "and this is a single run; type hydra.run.dir=out, or -m"),
    (["-m", "seed=1,2", "output_dir=out"], "type hydra.sweep.dir=out"),
    (["-m", "seed=1,2", "--output_dir", "out"], "type hydra.sweep.dir=out"),
    (["-m", "lora.r=4,8", "hydra.sweep.dir=/proc/x"], "type hydra.sweep.dir=FOLDER where you may write"),
    (["task.data.mixture={a:", "{path: x},", "b:", "{path: y}}"], "type 'task.data.mixture={a: {path: x}, b: {path: y}}'"),
    (["lora.target_modules=[q_proj,", "v_proj]", "seed=1"], "the shell made 2 words of it"),
    (["trainer.lr_scheduler_kwargs={min_lr_rate:", "-1}"], "type 'trainer.lr_scheduler_kwargs={min_lr_rate: -1}'"),
    (["adapter=a:one", "adapter=b:two"], "type 'adapter={a: one, b: two}'"),
    (["action=generate", "prompt=What", "is", "this?"], "type 'prompt=\"What is this?\"'"),
    (["action=list", "path=RUN"], "type dirs=[RUN]"),
    (["action=list", "RUN"], "type dirs=[RUN]"),
    (["action=browse", "action.dir=here"], "type dirs=[here]"),
    (["action=inspect", "path=RUN"], "type adapter=RUN"),
    (["action=replay", "folder=RUN"], "type run=RUN"),
    (["action=generate", "adapter=RUN", "file=p.txt"], "type prompts_file=p.txt"),
    (["action=compare", "path=RUN"], "type 'runs=[RUN, outputs/train/"),
    (["adapter=lora"], "adapter=lora: is not an adapter to load, but a method; type lora=lora"),
    (["adapter=qlora"], "type lora=lora model.quantization=nf4"),
    (["action=merge", "adapter=dora"], "type lora=dora"),
    (["template=qwen"], "type model.chat_template=qwen, or omit it"),
    (["lora.modules_to_save=lm_head"], "must be a list; type lora.modules_to_save=[lm_head]"),
    (["lora.layer_replication=[0,2]"], "must be a list; type lora.layer_replication=[[VALUE,VALUE]]"),
    (["hub_token=our-secret"], "hub_token: there is no such key; secrets are not typed"),
    (["--hf_token", "our-secret"], "--hf_token: secrets are not typed"),
]  # fmt: skip


def refused(outcome, line):
    assert outcome.code == 1 and line in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert "our-secret" not in outcome.err


@cases("typed, line", REFUSED, every=4)
def test_it_is_one_line(cli, tmp_path, trained, typed, line):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "outer" / "inner" / "lora").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    refused(cli(*(text.replace("RUN", str(trained)) for text in typed)), line.replace("RUN", str(trained)))
    assert {path.name for path in tmp_path.iterdir()} == before


@cases("places", ["nowhere", ["nowhere"]])
def test_from_python_a_folder_of_configs_is_looked_at_too(places):
    with pytest.raises(ConfigError, match="config_dirs: nowhere: there is no such folder"):
        peftrun.load(config_dirs=places)


def test_from_python_overrides_stand_by_themselves():
    with pytest.raises(TypeError, match=r"load\('lora.r=4'"):
        peftrun.load(["lora.r=4"])
    with pytest.raises(ConfigError, match="several values are a sweep"):
        peftrun.load("lora.r=4,8")


def test_a_runs_config_that_is_no_yaml_is_named(cli, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "broken")
    with open(tmp_path / "broken" / "config.yaml", "a") as file:
        file.write("  : [broken")
    for action in ("replay", "explain"):
        refused(cli(f"action={action}", "run=broken"), "broken/config.yaml: is not readable YAML")


def test_a_run_without_its_config_is_named(cli, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "bare")
    (tmp_path / "bare" / "config.yaml").unlink()
    refused(cli("action=replay", "run=bare"), "no config.yaml")


def test_a_key_that_never_was_is_not_explained(cli, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "typo")
    config = tmp_path / "typo" / "config.yaml"
    config.write_text(config.read_text().replace("max_steps:", "max_stepss:"))
    refused(cli("action=explain", "run=typo"), "did you mean trainer.max_steps?")


def test_a_run_is_composed_once_and_a_teams_file_may_still_make_it_a_sweep(cli, tmp_path, trained, monkeypatch):
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *args, **more: (composed.append(1), load(*args, **more))[1]
    )
    inspect = ["action=inspect", f"adapter={trained}"]
    assert cli(*inspect).code == 0 and len(composed) == 1
    (tmp_path / "team" / "experiment").mkdir(parents=True)
    (tmp_path / "team" / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: '1,2'}\n"
    )
    swept = cli("--config-dir", "team", "experiment=grid", *inspect)
    assert swept.code == 0 and len(list(tmp_path.glob("outputs/sweeps/*/*/record.json"))) == 2, swept.err

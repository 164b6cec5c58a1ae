"""`action.` may be left out where the chosen action alone has the key; everything else stays as it was typed."""

from pathlib import Path

from cases import cases

from peftrun.config import shorthand

HOME = Path.home()


@cases(
    "given, full",
    [
        (["action=replay", "run=a", "check_only=true"], ["action=replay", "action.run=a", "action.check_only=true"]),
        (["run=a", "action=explain", "compare_with=b"], ["action.run=a", "action=explain", "action.compare_with=b"]),
        (["resume=auto"], ["action.resume=auto"]),  # the default action is train
        (["action=merge", "output_dir=x", "lora.r=4"], ["action=merge", "action.output_dir=x", "lora.r=4"]),
        (["-m", "action=plan,train", "seed=1,2"], ["-m", "action=plan,train", "seed=1,2"]),
        # Fields of PEFT's that the chosen option of group lora does not show.
        (
            ["lora.use_qalora=true", "lora.r=8", "lora.kasa_config.beta=1", "+lora.x=1", "lora.eva_config.rho=2"],
            ["++lora.use_qalora=true", "lora.r=8", "++lora.kasa_config.beta=1", "+lora.x=1", "lora.eva_config.rho=2"],
        ),
        (["lora=dora", "lora.r=8", "lora.bias=all"], ["lora=dora", "lora.r=8", "lora.bias=all"]),
        (["lora=vera,vera", "lora.r=8", "lora.bias=all,none"], ["lora=vera,vera", "lora.r=8", "++lora.bias=all,none"]),
        (["run=a"], ["run=a"]),  # train knows no run: refused as it stands
        (["adapter=x", "active_adapter=y", "seed=3"], ["adapter=x", "active_adapter=y", "seed=3"]),
        (["action=nosuch", "run=a"], ["action=nosuch", "run=a"]),
        (["--config-dir=team", "+run=a"], ["--config-dir=team", "+run=a"]),
        (
            ["task.data.path=~/x.jsonl", "adapter={a: ~/one, b: /~/two}"],
            [f"task.data.path={HOME}/x.jsonl", f"adapter={{a: {HOME}/one, b: /~/two}}"],
        ),
        (
            ['hydra.run.dir="~/runs/x"', 'task.prompt_template="~/x"', "~lora.r"],
            [f'hydra.run.dir="{HOME}/runs/x"', 'task.prompt_template="~/x"', "~lora.r"],
        ),
        (
            [
                "task.data.mixture={a: {path: ~/x.jsonl, prompt_template: 'path: ~/y'}}",
                "task.data.mixture.b.path=~/z",
                "hydra.searchpath=[file://~/t]",
            ],
            [
                f"task.data.mixture={{a: {{path: {HOME}/x.jsonl, prompt_template: 'path: ~/y'}}}}",
                f"task.data.mixture.b.path={HOME}/z",
                f"hydra.searchpath=[file://{HOME}/t]",
            ],
        ),
        (
            ["adapter=~", "task.data.mixture.b.prompt_template=~/z", "adapter=~nosuch/x"],
            ["adapter=~", "task.data.mixture.b.prompt_template=~/z", "adapter=~nosuch/x"],
        ),
        # Line ends in templates, system messages and prompts; nowhere else.
        (
            [r"task.prompt_template='{a}\n\n{b?}'", r"++task.system_prompt=Be\tkind"],
            ["task.prompt_template='{a}\n\n{b?}'", '++task.system_prompt="Be\tkind"'],
        ),
        (["action=generate", r'prompt="a\n\"b\""'], ["action=generate", 'action.prompt="a\n\\"b\\""']),
        (
            [r"task.data.mixture={a: {path: x\n, prompt_template: '{q}\n'}}"],
            ["task.data.mixture={a: {path: x\\n, prompt_template: '{q}\n'}}"],
        ),
        (
            [r"task.system_prompt='a\n','b'", r"task.data.path=C:\new"],
            ["task.system_prompt='a\n','b'", r"task.data.path=C:\new"],
        ),
        (
            [r"task.system_prompt='a\\nb'", r"task.system_prompt='${b}\n'"],
            [r"task.system_prompt='a\\nb'", "task.system_prompt='${b}\n'"],
        ),
        ([rf'task.system_prompt="a\n{shorthand.AS_WRITTEN}"'], [rf'task.system_prompt="a\n{shorthand.AS_WRITTEN}"']),
    ],
)
def test_keys_are_put_in_full(given, full):
    assert shorthand.expand_shorthand(given) == full == shorthand.expand_shorthand(full)


@cases("value", [
        "task=sms_spam and r>=8", "a='x y' and b=\"z\"", "a~*b* or (c!=d)", "a=b\\", "x='it\\'s'", 'q="a" and s="c"', "run~a,b", 'a=\\"x', "a=${b}", "z=[1] or {q}", "",
    ])  # fmt: skip
def test_conditions_reach_hydra_as_they_were_typed(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for key in ("where", "action.where"):
        text = shorthand.expand_shorthand(["action=list", f"{key}={value}"])[-1]
        assert shorthand.expand_shorthand(["action=list", text])[-1] == text
        found = OverridesParser.create().parse_override(text).value()
        assert found == value or (value == "a=${b}" and found is not None)


def test_conditions_in_quotes_stay_as_they_are():
    for value in ("'a=1'", '"a=1 and b<2"', "null", "${seed}"):
        assert shorthand.expand_shorthand([f"action.where={value}"]) == [f"action.where={value}"]


def test_a_short_key_does_what_the_full_one_does(cli, trained, on_tiny, llama):
    short = cli("action=merge", f"adapter={trained}", "verify=false", *on_tiny(llama))
    assert short.code == 0, short.err
    assert short.record()["action"] == "merge" and "verify: false" in (short.run_dir / "config.yaml").read_text()


def test_a_short_key_of_another_action_is_refused(cli):
    outcome = cli("action=merge", "prompt=hello")
    assert outcome.code == 1 and "prompt=hello: is a key of action=generate" in outcome.err

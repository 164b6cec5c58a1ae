"""The commands that a run suggests work as they are printed, whatever model, task and adapters it had."""

import shlex

from cases import cases


def suggested(outcome) -> list[list[str]]:
    assert outcome.code == 0, outcome.err
    lines = [line.strip() for line in outcome.out.splitlines() if line.strip().startswith("peftrun action=")]
    return [shlex.split(line)[1:] for line in lines if "action.prompt" not in line]


@cases("action", ["save", "merge", "reload", "combine"], every=4)
def test_what_is_suggested_works(cli, trained, llama, on_tiny, action):
    given = f"adapter={{a: {trained}, b: {trained}}}" if action in ("save", "combine") else f"adapter={trained}"
    commands = suggested(cli(*on_tiny(llama), f"action={action}", given))
    assert commands
    for command in commands:
        if "action=generate" in command:
            command.append("action.prompt=hi")
        again = cli(*command, "action.max_new_tokens=2") if "action=generate" in command else cli(*command)
        assert again.code == 0, (command, again.err)


@cases(
    "spread",
    [["device=ddp", "device.processes=2"], ["experiment=data_parallel", "device.name=cpu"]],
    ids=lambda given: given[0],
)
def test_what_follows_a_run_of_several_processes_runs_in_one(spread):
    from peftrun import asked, composition, config

    typed = asked.in_one_process([*spread, "device.dtype=float32", "seed=3"])
    command = shlex.split(asked.on_the_same("peftrun action=evaluate", typed))[1:]
    assert "device.dtype=float32" in command
    spec = config.build(composition.compose_run(command).cfg)
    assert spec.device.strategy is None and spec.device.processes == 1 and spec.device.dtype == "float32"

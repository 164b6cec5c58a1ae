"""Answer one prompt, a file of prompts, or a person at the terminal."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from peftrun import artifacts, console, device, placement, prompts, warm
from peftrun.action_specs import GenerateAction
from peftrun.adapter import load, mixing
from peftrun.model import Base
from peftrun.prompts import Prompt
from peftrun.result import RunResult
from peftrun.schema import RunSpec
from peftrun.tasks import limits
from peftrun.tasks.encoding import prompt_ids
from peftrun.tasks.messages import ASSISTANT, Talk

GENERATIONS = "generations.jsonl"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints each answer; every prompt, its answer and who gave it is also a row of generations.jsonl."""
    action = spec.action
    assert isinstance(action, GenerateAction)
    asked = _prompts(action, spec.adapter)
    set_seed(spec.seed)
    place = placement.resolve(spec)
    console.say(place.note)
    base = warm.load_base(spec.model, place)
    net: Any = base.model
    facts: dict[str, Any] = {"base": base.describe(), "device": place.note}
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
    file = out_dir / GENERATIONS
    given: Talk = (("system", spec.task.system),) if spec.task.system else ()
    usual = net.active_adapter if spec.adapter else prompts.BASE
    turns = _chat(given, net, base, action) if asked is None else _each(asked, given, net, base, action)
    for prompt, said in turns:
        artifacts.append_json_line(file, {"prompt": prompt.text, "answer": said, "adapter": prompt.adapter or usual})
        console.show(said)
    return RunResult(out_dir, facts, summary=[("answers", console.short(file))])


def answers(net: Any, base: Base, talks: list[Talk], action: GenerateAction) -> list[str]:
    """What the model says next in each talk. Prompts are padded on the left, which changes no answer.

    Raises: DataError: the chat template refuses a talk, or the base does not embed a token of it.
    """
    tokenizer = base.tokenizer
    read = _read if net.config.is_encoder_decoder else prompt_ids
    ids = [read(tokenizer, talk) for talk in talks]
    for one, talk in zip(ids, talks, strict=True):
        limits.check_embedded(one, base, f"prompt {talk[-1][1][:40]!r}")
    width = max(map(len, ids))
    padded = [[tokenizer.pad_token_id] * (width - len(one)) + one for one in ids]
    mask = [[0] * (width - len(one)) + [1] * len(one) for one in ids]
    sampling = (
        {"do_sample": True, "temperature": action.temperature, "top_p": action.top_p}
        if action.temperature > 0
        else {"do_sample": False}
    )
    with torch.inference_mode():
        out = net.generate(
            input_ids=torch.tensor(padded, device=device.of_inputs(net)),
            attention_mask=torch.tensor(mask, device=device.of_inputs(net)),
            max_new_tokens=action.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    begin = 0 if net.config.is_encoder_decoder else width  # a decoder of its own does not repeat what was read
    return [str(tokenizer.decode(row[begin:], skip_special_tokens=True)).strip() for row in out]


def _read(tokenizer: Any, talk: Talk) -> list[int]:
    """What an encoder is given: the last message alone, as in training."""
    return list(tokenizer(talk[-1][1])["input_ids"])


def _prompts(action: GenerateAction, adapters: dict[str, str]) -> list[Prompt] | None:
    """The prompts given by config; None: a person types them."""
    if action.prompt is not None:
        return [Prompt(action.prompt)]
    return prompts.read(action.prompts_file, adapters) if action.prompts_file is not None else None


def _each(
    asked: list[Prompt], given: Talk, net: Any, base: Any, action: GenerateAction
) -> Iterator[tuple[Prompt, str]]:
    """Answers in the order of the prompts, computed in batches of rows that may share one."""
    names = [one.adapter for one in asked]
    groups = mixing.groups(net, names)
    if len(groups) > 1:
        console.say(f"rows are answered adapter by adapter: {mixing.cannot(net, names)}, which cannot share a batch")
    found: dict[int, str] = {}
    told = 0
    for group in groups:
        for start in range(0, len(group), action.batch_size):
            rows = group[start : start + action.batch_size]
            talks = [(*given, ("user", asked[row].text)) for row in rows]
            with mixing.answering(net, [names[row] for row in rows]):
                found |= dict(zip(rows, answers(net, base, talks, action), strict=True))
            while told in found:
                yield asked[told], found[told]
                told += 1


def _chat(given: Talk, net: Any, base: Any, action: GenerateAction) -> Iterator[tuple[Prompt, str]]:
    """Turns of a talk that remembers itself, until an empty line or the end of input."""
    console.say("chat: type a message, an empty line ends")
    talk = given
    while True:
        print("you> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().strip()
        if not prompt:
            return
        talk = (*talk, ("user", prompt))
        said = answers(net, base, [talk], action)[0]
        talk = (*talk, (ASSISTANT, said))
        yield Prompt(prompt), said

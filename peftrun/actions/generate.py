"""Answer one prompt, a file of prompts, or a person at the terminal."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from peftrun import artifacts, console, device, model
from peftrun.adapter import load
from peftrun.errors import DataError
from peftrun.result import RunResult
from peftrun.schema import GenerateAction, RunSpec
from peftrun.tasks.causal_lm import prompt_ids

GENERATIONS = "generations.jsonl"
Talk = tuple[tuple[str, str], ...]  # (role, content)


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints each answer; every prompt and answer is also a row of generations.jsonl."""
    assert isinstance(spec.action, GenerateAction)
    prompts = _prompts(spec.action)
    set_seed(spec.seed)
    place = device.resolve(spec.device)
    console.say(place.note)
    base = model.load_base(spec.model, place)
    net: Any = base.model
    facts: dict[str, Any] = {"base": base.describe(), "device": place.note}
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
    file = out_dir / GENERATIONS
    given: Talk = (("system", spec.task.system),) if spec.task.system else ()
    turns = _chat(given, net, base, spec.action) if prompts is None else _each(prompts, given, net, base, spec.action)
    for prompt, answer in turns:
        artifacts.append_json_line(file, {"prompt": prompt, "answer": answer})
        console.show(answer)
    return RunResult(out_dir, facts, summary=[("answers", console.short(file))])


def answer(net: Any, tokenizer: Any, talk: Talk, action: GenerateAction) -> str:
    """What the model says next in `talk`."""
    ids = torch.tensor([prompt_ids(tokenizer, talk)], device=net.device)
    sampling = (
        {"do_sample": True, "temperature": action.temperature, "top_p": action.top_p}
        if action.temperature > 0
        else {"do_sample": False}
    )
    with torch.inference_mode():
        out = net.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=action.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _prompts(action: GenerateAction) -> list[str] | None:
    """The prompts given by config; None: a person types them."""
    if action.prompt is not None:
        return [action.prompt]
    if action.prompts_file is None:
        return None
    lines = [line.strip() for line in Path(action.prompts_file).read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise DataError(f"action.prompts_file={action.prompts_file}: holds no prompt; write one a line")
    return prompts


def _each(prompts: list[str], given: Talk, net: Any, base: Any, action: GenerateAction) -> Iterator[tuple[str, str]]:
    for prompt in prompts:
        yield prompt, answer(net, base.tokenizer, (*given, ("user", prompt)), action)


def _chat(given: Talk, net: Any, base: Any, action: GenerateAction) -> Iterator[tuple[str, str]]:
    """Turns of a talk that remembers itself, until an empty line or the end of input."""
    console.say("chat: type a message, an empty line ends")
    talk = given
    while True:
        print("you> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().strip()
        if not prompt:
            return
        talk = (*talk, ("user", prompt))
        said = answer(net, base.tokenizer, talk, action)
        talk = (*talk, ("assistant", said))
        yield prompt, said

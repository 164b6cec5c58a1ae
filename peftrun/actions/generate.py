"""Answer one prompt, a file of prompts, or a person at the terminal."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console
from peftrun.adapters import load, mixed_batch
from peftrun.artifacts import prompts_file
from peftrun.artifacts.prompts_file import Prompt
from peftrun.config.schema.actions import GenerateAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError
from peftrun.io import atomic_files
from peftrun.models import base_cache, placement
from peftrun.models.base import Base
from peftrun.result import RunResult
from peftrun.tasks import generation_metrics, length_checks
from peftrun.tasks.conversations import unanswered
from peftrun.tasks.messages import ASSISTANT, Conversation, conversation_of, named, opened_by, says
from peftrun.tasks.tokenization import Encoder

GENERATIONS = "generations.jsonl"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints each answer; every prompt, its answer and who gave it is also a row of generations.jsonl."""
    action = spec.action
    assert isinstance(action, GenerateAction)
    asked = _prompts(action, spec.adapter)
    set_seed(spec.seed)
    place = placement.resolve(spec)
    console.say(place.note)
    base = base_cache.load_base(spec.model, place)
    net: Any = base.model
    facts: dict[str, Any] = {"base": base.describe(), "device": place.note}
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
    file = out_dir / GENERATIONS
    given = Conversation(opened_by(spec.task.system))
    writer = Writer(net, base, Encoder(base.tokenizer, spec.task), action)
    usual = net.active_adapter if spec.adapter else prompts_file.BASE
    turns = _chat(given, writer) if asked is None else _each(asked, given, writer)
    for prompt, said in turns:
        atomic_files.append_json_line(file, {"prompt": prompt.said, "answer": said, "adapter": prompt.adapter or usual})
        console.show(said)
    return RunResult(out_dir, facts, summary=[("answers", console.short(file))])


@dataclass(frozen=True)
class Writer:
    """Who answers, and how."""

    net: Any
    base: Base
    encoder: Encoder
    action: GenerateAction

    def read(self, conversation: Conversation) -> list[int]:
        """A conversation's token ids; an encoder is given the last message alone, as in training.

        Raises: DataError: the chat template refuses it, the base does not embed a token of it, or has no position left for an answer.
        """
        last, net = conversation.messages[-1].text, self.net
        where = f"prompt {last[:40]!r}"
        if net.config.is_encoder_decoder:
            ids = list(self.base.tokenizer(last)["input_ids"])
        else:
            with named(where):
                self.encoder.check(where, conversation)
                ids = self.encoder.prompt(conversation)
        length_checks.check_embedded(ids, length_checks.reader_of(self.base), where)
        left = length_checks.room(net, ids)
        if left is not None and left < 1:
            raise DataError(
                f"{where}: has {len(ids)} tokens, and {self.base.name} reads {length_checks.positions(net)}, the answer among them; shorten it"
            )
        return ids

    def batches(self, prompts: list[list[int]]) -> Iterator[list[int]]:
        """Places of prompts to be answered together."""
        return generation_metrics.batches(self.net, prompts, self.action.batch_size, self.action.max_new_tokens)

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """What the model says next, computed in one batch. Prompts are padded on the left, which changes no answer."""
        hot = self.action.temperature > 0
        sampling = (
            {"do_sample": True, "temperature": self.action.temperature, "top_p": self.action.top_p} if hot else {}
        )
        said = generation_metrics.write(self.net, self.base.tokenizer, prompts, self.action.max_new_tokens, **sampling)
        return [one.strip() for one in said]


def _prompts(action: GenerateAction, adapters: dict[str, str]) -> list[Prompt] | None:
    """The prompts given by config; None: a person types them."""
    if action.prompt is not None:
        return [Prompt(action.prompt)]
    return prompts_file.read(action.prompts_file, adapters) if action.prompts_file is not None else None


def _each(asked: list[Prompt], given: Conversation, writer: Writer) -> Iterator[tuple[Prompt, str]]:
    """Answers in the order of the prompts, computed in batches of rows that may share one."""
    names = [one.adapter for one in asked]
    ids = [writer.read(_conversation(one, given)) for one in asked]
    writer.encoder.report("prompts")
    groups = mixed_batch.groups(writer.net, names)
    if len(groups) > 1:
        console.say(
            f"rows are answered adapter by adapter: {mixed_batch.cannot(writer.net, names)}, which cannot share a batch"
        )
    found: dict[int, str] = {}
    told = 0
    for group in groups:
        for part in writer.batches([ids[row] for row in group]):
            rows = [group[place] for place in part]
            with mixed_batch.answering(writer.net, [names[row] for row in rows]):
                found |= zip(rows, writer.answers([ids[row] for row in rows]), strict=True)
            while told in found:
                yield asked[told], found[told]
                told += 1


def _conversation(prompt: Prompt, given: Conversation) -> Conversation:
    """What is asked, after the task's system message."""
    if isinstance(prompt.said, str):
        return given.followed_by(says("user", prompt.said))
    asked = unanswered(
        "action.prompts_file", conversation_of("action.prompts_file", prompt.said, "prompt", prompt.tools), "prompt"
    )
    return Conversation((*given.messages, *asked.messages), asked.tools)


def _chat(given: Conversation, writer: Writer) -> Iterator[tuple[Prompt, str]]:
    """Turns of a conversation that remembers itself, until an empty line or the end of input."""
    console.say("chat: type a message, an empty line ends")
    conversation = given
    while True:
        print("you> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().strip()
        if not prompt:
            return
        conversation = conversation.followed_by(says("user", prompt))
        ids = writer.read(conversation)
        writer.encoder.report("prompts")
        said = writer.answers([ids])[0]
        conversation = conversation.followed_by(says(ASSISTANT, said))
        yield Prompt(prompt), said

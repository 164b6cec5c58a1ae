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
from peftrun.models.base import LoadedBase
from peftrun.result import RunResult
from peftrun.tasks import generation_metrics, length_checks
from peftrun.tasks.conversations import check_unanswered
from peftrun.tasks.messages import (
    ASSISTANT,
    Conversation,
    build_system_messages,
    make_message,
    parse_conversation,
    prefix_errors,
)
from peftrun.tasks.tokenization import Encoder

GENERATIONS = "generations.jsonl"


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Prints each answer; every prompt, its answer and who gave it is also a row of generations.jsonl."""
    action = spec.action
    assert isinstance(action, GenerateAction)
    asked = _load_prompts(action, spec.adapter)
    set_seed(spec.seed)
    place = placement.resolve_run_device(spec)
    console.print_info(place.note)
    base = base_cache.load_cached_base(spec.model, place)
    net: Any = base.model
    facts: dict[str, Any] = {"base": base.describe(), "device": place.note}
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
    file = out_dir / GENERATIONS
    given = Conversation(build_system_messages(spec.task.system))
    writer = ResponseGenerator(net, base, Encoder(base.tokenizer, spec.task), action)
    usual = net.active_adapter if spec.adapter else prompts_file.BASE_ADAPTER_NAME
    turns = _run_chat(given, writer) if asked is None else _answer_prompts(asked, given, writer)
    for prompt, said in turns:
        atomic_files.append_json_line(file, {"prompt": prompt.said, "answer": said, "adapter": prompt.adapter or usual})
        console.print_result(said)
    return RunResult(out_dir, facts, summary=[("answers", console.shorten_path(file))])


@dataclass(frozen=True)
class ResponseGenerator:
    """Who answers, and how."""

    net: Any
    base: LoadedBase
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
            with prefix_errors(where):
                self.encoder.check(where, conversation)
                ids = self.encoder.prompt(conversation)
        length_checks.check_vocab_ids(ids, length_checks.build_reader(self.base), where)
        left = length_checks.count_free_positions(net, ids)
        if left is not None and left < 1:
            raise DataError(
                f"{where}: has {len(ids)} tokens, and {self.base.name} reads {length_checks.positions(net)}, the answer among them; shorten it"
            )
        return ids

    def batches(self, prompts: list[list[int]]) -> Iterator[list[int]]:
        """Places of prompts to be answered together."""
        return generation_metrics.batch_prompts(self.net, prompts, self.action.batch_size, self.action.max_new_tokens)

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """What the model says next, computed in one batch. Prompts are padded on the left, which changes no answer."""
        hot = self.action.temperature > 0
        sampling = (
            {"do_sample": True, "temperature": self.action.temperature, "top_p": self.action.top_p} if hot else {}
        )
        said = generation_metrics.generate_batch(
            self.net, self.base.tokenizer, prompts, self.action.max_new_tokens, **sampling
        )
        return [one.strip() for one in said]


def _load_prompts(action: GenerateAction, adapters: dict[str, str]) -> list[Prompt] | None:
    """The prompts given by config; None: a person types them."""
    if action.prompt is not None:
        return [Prompt(action.prompt)]
    return prompts_file.read_prompts(action.prompts_file, adapters) if action.prompts_file is not None else None


def _answer_prompts(
    asked: list[Prompt], given: Conversation, writer: ResponseGenerator
) -> Iterator[tuple[Prompt, str]]:
    """Answers in the order of the prompts, computed in batches of rows that may share one."""
    names = [one.adapter for one in asked]
    ids = [writer.read(_build_conversation(one, given)) for one in asked]
    writer.encoder.report_remarks("prompts")
    groups = mixed_batch.group_rows(writer.net, names)
    if len(groups) > 1:
        console.print_info(
            f"rows are answered adapter by adapter: {mixed_batch.why_not_mixable(writer.net, names)}, which cannot share a batch"
        )
    found: dict[int, str] = {}
    told = 0
    for group in groups:
        for part in writer.batches([ids[row] for row in group]):
            rows = [group[place] for place in part]
            with mixed_batch.route_rows(writer.net, [names[row] for row in rows]):
                found |= zip(rows, writer.answers([ids[row] for row in rows]), strict=True)
            while told in found:
                yield asked[told], found[told]
                told += 1


def _build_conversation(prompt: Prompt, given: Conversation) -> Conversation:
    """What is asked, after the task's system message."""
    if isinstance(prompt.said, str):
        return given.followed_by(make_message("user", prompt.said))
    asked = check_unanswered(
        "action.prompts_file", parse_conversation("action.prompts_file", prompt.said, "prompt", prompt.tools), "prompt"
    )
    return Conversation((*given.messages, *asked.messages), asked.tools)


def _run_chat(given: Conversation, writer: ResponseGenerator) -> Iterator[tuple[Prompt, str]]:
    """Turns of a conversation that remembers itself, until an empty line or the end of input."""
    console.print_info("chat: type a message, an empty line ends")
    conversation = given
    while True:
        print("you> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().strip()
        if not prompt:
            return
        conversation = conversation.followed_by(make_message("user", prompt))
        ids = writer.read(conversation)
        writer.encoder.report_remarks("prompts")
        said = writer.answers([ids])[0]
        conversation = conversation.followed_by(make_message(ASSISTANT, said))
        yield Prompt(prompt), said

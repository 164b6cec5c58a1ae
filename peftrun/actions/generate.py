"""Generate answers to one prompt, to a file of prompts, or in an interactive chat."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from peftrun import console
from peftrun.adapters import load, mixed_batch
from peftrun.artifacts import adapter_folder, prompts_file
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
    """Prints each answer and appends a row (prompt, answer, adapter) to generations.jsonl."""
    action = spec.action
    assert isinstance(action, GenerateAction)
    prompts: list[Prompt] | None = None  # None: an interactive chat
    if action.prompt is not None:
        prompts = [Prompt(action.prompt)]
    elif action.prompts_file is not None:
        prompts = prompts_file.read_prompts(action.prompts_file, spec.adapter)
    set_seed(spec.seed)
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    base = base_cache.load_cached_base(spec.model, run_device)
    net: Any = base.model
    facts: dict[str, Any] = {"base": base.describe(), "device": run_device.note}
    if spec.adapter:
        adapters = adapter_folder.resolve_adapters(spec.adapter)
        net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
    file = out_dir / GENERATIONS
    system_messages = Conversation(build_system_messages(spec.task.system_prompt))
    writer = ResponseGenerator(net, base, Encoder(base.tokenizer, spec.task), action)
    default_adapter = net.active_adapter if spec.adapter else prompts_file.BASE_ADAPTER_NAME
    turns = _run_chat(system_messages, writer) if prompts is None else _answer_prompts(prompts, system_messages, writer)
    for prompt, answer in turns:
        atomic_files.append_json_line(
            file, {"prompt": prompt.content, "answer": answer, "adapter": prompt.adapter or default_adapter}
        )
        console.print_result(answer)
    return RunResult(out_dir, facts, summary=[("answers", console.shorten_path(file))])


@dataclass(frozen=True)
class ResponseGenerator:
    """A model with its tokenizer and the sampling settings of the action."""

    net: Any
    base: LoadedBase
    encoder: Encoder
    action: GenerateAction

    def read(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation. An encoder-decoder model reads only the last message, as in training.

        Raises: DataError: the chat template refuses the conversation, the base model has no embedding for one of its tokens, or
            no position is left for an answer.
        """
        last_message, net = conversation.messages[-1].text, self.net
        label = f"prompt {last_message[:40]!r}"
        if net.config.is_encoder_decoder:  # trained on single texts, without a chat template
            ids = list(self.base.tokenizer(last_message)["input_ids"])
        else:
            with prefix_errors(label):
                self.encoder.check(label, conversation)
                ids = self.encoder.prompt(conversation)
        length_checks.check_vocab_ids(ids, length_checks.build_reader(self.base), label)
        free_positions = length_checks.count_free_positions(net, ids)
        if free_positions is not None and free_positions < 1:
            raise DataError(
                f"{label}: has {len(ids)} tokens, and {self.base.name} has {length_checks.positions(net)} positions, including those of the answer; shorten it"
            )
        return ids

    def batches(self, prompts: list[list[int]]) -> Iterator[list[int]]:
        """Batches of indices into `prompts` (token ids)."""
        return generation_metrics.batch_prompts(self.net, prompts, self.action.batch_size, self.action.max_new_tokens)

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """Answers to prompts of token ids, generated in one batch, padded on the left to (B, T)."""
        sampling: dict[str, Any] = {}  # greedy decoding
        if self.action.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.action.temperature, "top_p": self.action.top_p}
        texts = generation_metrics.generate_batch(
            self.net, self.base.tokenizer, prompts, self.action.max_new_tokens, **sampling
        )
        return [text.strip() for text in texts]


def _answer_prompts(
    prompts: list[Prompt], system_messages: Conversation, writer: ResponseGenerator
) -> Iterator[tuple[Prompt, str]]:
    """(prompt, answer) in the order of the prompts; batches hold only rows whose adapters can share a forward pass."""
    names = [prompt.adapter for prompt in prompts]  # None: the active adapter
    ids, key = [], "action.prompts_file"
    for prompt in prompts:
        if isinstance(prompt.content, str):
            conversation = system_messages.followed_by(make_message("user", prompt.content))
        else:
            rest = check_unanswered(key, parse_conversation(key, prompt.content, "prompt", prompt.tools), "prompt")
            conversation = Conversation((*system_messages.messages, *rest.messages), rest.tools)
        ids.append(writer.read(conversation))
    writer.encoder.report_remarks("prompts")
    groups = mixed_batch.group_rows(writer.net, names)
    if len(groups) > 1:
        console.print_info(
            f"rows are answered adapter by adapter: {mixed_batch.why_not_mixable(writer.net, names)}, which cannot share a batch"
        )
    answers: dict[int, str] = {}
    next_row = 0
    for group in groups:
        for batch in writer.batches([ids[row] for row in group]):
            rows = [group[index] for index in batch]
            with mixed_batch.route_rows(writer.net, [names[row] for row in rows]):
                answers |= zip(rows, writer.answers([ids[row] for row in rows]), strict=True)
            # Groups and batches are not in the order of the prompts, so an answer waits for those of earlier prompts.
            while next_row in answers:
                yield prompts[next_row], answers[next_row]
                next_row += 1


def _run_chat(conversation: Conversation, writer: ResponseGenerator) -> Iterator[tuple[Prompt, str]]:
    """Turns of a chat with history, read from standard input until an empty line or the end of input."""
    console.print_info("chat: type a message, an empty line ends")
    while True:
        # On standard error, so that standard output holds the answers alone and can be piped.
        print("you> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().strip()
        if not prompt:
            return
        conversation = conversation.followed_by(make_message("user", prompt))
        ids = writer.read(conversation)
        writer.encoder.report_remarks("prompts")
        answer = writer.answers([ids])[0]
        conversation = conversation.followed_by(make_message(ASSISTANT, answer))
        yield Prompt(prompt), answer

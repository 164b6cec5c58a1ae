"""Tools in a request: the model is prompted with them as in training, and its calls come back as OpenAI's clients read them."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import cases
from conftest import build_llama, jsonl
from transformers import AutoTokenizer

import peftrun
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.serving import errors, requests, responses, tool_calls
from peftrun.serving.adapter_registry import AdapterRegistry
from peftrun.serving.batch import ModelRunner
from peftrun.serving.engine import Engine
from peftrun.serving.metrics import Metrics
from peftrun.serving.request_state import OutputChunk
from peftrun.serving.service import Service
from peftrun.tasks import causal_lm

HERMES = Path(__file__).parent.parent / "chat_templates" / "hermes.jinja"
TOOL = {
    "function": {"description": "of a city", "name": "weather", "parameters": {"type": "object", "properties": {}}},
    "type": "function",
}
CALL = {"id": "c1", "type": "function", "function": {"arguments": '{"city": "Bern", "a": 1}', "name": "weather"}}
TALK = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "21"},
]
ANSWER = {"role": "assistant", "content": "yes"}
# How trl and transformers describe Qwen's answers; a tokenizer brings it along in its own config.
RESPONSES = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


@pytest.fixture(scope="module")
def hermes(tmp_path_factory):
    """A base whose template shows tools, and whose tokenizer says how calls are written."""
    folder = build_llama(tmp_path_factory.mktemp("models") / "hermes", max_position_embeddings=2048)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.response_template = HERMES.read_text(), RESPONSES
    tokenizer.save_pretrained(folder)
    return folder


def prompted(overrides, messages, **more):
    """Token ids that a server's engine is given for a request."""
    spec = peftrun.load(*overrides, "action=serve")
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    versions, watch = AdapterRegistry(base.name, []), Metrics()
    engine = Engine(ModelRunner(base.model, base.tokenizer.pad_token_id), versions, watch, 2, 4)
    service = Service(base, engine, versions, watch, spec.action, task=spec.task)
    body = {"model": "base", "messages": messages, "max_tokens": 2, **more}

    async def ask():
        ticket, _ = await service.submit_request(
            requests.parse_request(json.dumps(body).encode(), requests.ChatCompletionRequest)
        )
        return ticket.prompts[0]

    try:
        return asyncio.run(ask())
    finally:
        service.close()


def learned(overrides, where, row, *more):
    """The prompt of a row of training, with the tools that it or its task names."""
    rows = jsonl(where / "rows.jsonl", [row, {**row, "messages": [*TALK[:2], {**TALK[2], "content": "9"}, ANSWER]}])
    task = [f"task.data.path={rows}", "task=chat", "task.data.num_test_rows=1", "task.max_length=2048", *more]
    spec = peftrun.load(
        *(one for one in overrides if not one.startswith("task")), *task, "task.data.split_strategy=last"
    )
    tokenizer = base_models.load_tokenizer(base_models.resolve_base_dir(spec.model), spec.model)
    return causal_lm.load_rows(spec.task, tokenizer).train[0].prompt


def test_what_is_prompted_is_what_was_learned(hermes, llama, on_tiny, tmp_path):
    on = on_tiny(hermes)
    whole = {"messages": [*TALK, ANSWER]}
    with_tools = learned(on, tmp_path, {**whole, "tools": [TOOL]})
    plain = learned(on, tmp_path, whole)
    assert prompted(on, TALK, tools=[TOOL]) == with_tools != plain
    assert prompted(on, TALK, tools=[TOOL], tool_choice="none") == plain == prompted(on, TALK)
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL]))
    own = [*on, f"task.tools={file}"]
    assert prompted(own, TALK) == with_tools == learned(on, tmp_path, whole, f"task.tools={file}")
    for messages, more, param in ((TALK[:1], {"tools": [TOOL]}, "tools"), (TALK, {}, "messages")):
        with pytest.raises(errors.ApiError, match="chat template") as refused:  # ChatML shows neither
            prompted(on_tiny(llama), messages, **more)
        assert (refused.value.status, refused.value.param) == (400, param)


WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bérn"}}\n</tool_call>'
# What is written → content, the calls' names, and why the answer ended.
SAID = [
    (f"{WRITTEN}<|im_end|>", None, ["weather"], "tool_calls"),
    (f"Let me look.\n{WRITTEN}\n{WRITTEN}<|im_end|>", "Let me look.", ["weather"] * 2, "tool_calls"),
    ("It is warm.<|im_end|>", "It is warm.", [], "stop"),
    ("<tool_call>\n{no JSON}\n</tool_call><|im_end|>", "<tool_call>\n{no JSON}\n</tool_call>", [], "stop"),
    ('<tool_call>\n{"name": "weather"}\n</tool_call><|im_end|>', '<tool_call>\n{"name": "weather"}\n</tool_call>', [], "stop"),
]  # fmt: skip


@cases("text, content, names, finish", SAID)
def test_calls_in_an_answer_are_read_where_their_form_is_known(hermes, llama, text, content, names, finish):
    unknown = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
    tokenizer = AutoTokenizer.from_pretrained(hermes)
    ids, prompt = tokenizer(text)["input_ids"], tokenizer("<|im_start|>assistant\n")["input_ids"]
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = [OutputChunk(0, tokenizer.decode([one], skip_special_tokens=True)) for one in ids]
    pieces[-1].finish, pieces[-1].ids = "stop", ids
    form = responses.ChatFormat(tool_calls.build_tool_parser(tokenizer, unknown, prompt, [TOOL]))
    choice = form.build_choice(OutputChunk(0, plain, len(ids), [], "stop", ids), None)
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == (content, finish)
    found = message.get("tool_calls", [])
    assert [one["function"]["name"] for one in found] == names and len({one["id"] for one in found}) == len(names)
    assert all(one["type"] == "function" and json.loads(one["function"]["arguments"]) == {"city": "Bérn"} for one in found)  # fmt: skip
    deltas = [form.build_delta(piece, None) for piece in pieces]
    last = deltas[-1]["delta"]
    assert (last["content"], deltas[-1]["finish_reason"]) == (content, finish) and not any(one["delta"] for one in deltas[:-1])  # fmt: skip
    assert [one["index"] for one in last.get("tool_calls", [])] == list(range(len(names)))
    cut = form.build_choice(
        OutputChunk(0, plain, len(ids), [], "stop"), None
    )  # at a stop string, which may lie inside a call
    assert cut["message"]["content"] == plain and cut["finish_reason"] == "stop"
    assert tool_calls.build_tool_parser(AutoTokenizer.from_pretrained(llama), unknown, prompt, [TOOL]) is None

"""Conversations from the row to the template: what is learned is the template's own rendering, and what is asked is its beginning."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import trl
from cases import cases
from conftest import TINY_STEPS, _tokenizer, build_gpt2, build_llama, jsonl
from tokenizers import pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftrun
from peftrun.errors import DataError, ModelError
from peftrun.tasks import end_tokens
from peftrun.tasks.chat_template import ChatTemplate
from peftrun.tasks.examples import render_example
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.messages import Conversation, Message
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import causal_lm
from peftrun.tasks.tokenization import Encoder

OURS, TRLS = Path(__file__).parent.parent / "chat_templates", Path(trl.__file__).parent / "chat_templates"
# Name → the file, the token that ends a turn, and what is written before an answer's own text.
TEMPLATES = {
    "chatml": (None, "<|im_end|>", ""),
    "llama": (TRLS / "llama3_1.jinja", "<|eot_id|>", ""),
    "mistral": (OURS / "mistral.jinja", "</s>", " "),
    "gemma": (TRLS / "gemma.jinja", "<end_of_turn>", ""),
    "qwen": (TRLS / "qwen3.jinja", "<|im_end|>", "<think>\n\n</think>\n\n"),
    "deepseek": (TRLS / "deepseekv3.jinja", "<｜end▁of▁sentence｜>", ""),
    "phi": (TRLS / "phi3_5.jinja", "<|end|>", ""),
    "command": (TRLS / "cohere2.jinja", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", ""),
    "granite": (OURS / "granite.jinja", "<|end_of_text|>", ""),
    "hermes": (OURS / "hermes.jinja", "<|im_end|>", ""),
}
CALL_TOOLS = ["llama", "mistral", "qwen", "deepseek", "granite", "hermes"]
SPECIAL = re.compile(
    r"<\|[^|<>\n]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
TALK = [
    ("user", "Is it spam?"),
    ("assistant", "yes, bad"),
    ("user", "And this?\n\nJa?"),
    ("assistant", "nô\nit is good"),
]
TOOL = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
CALLING = [
    {"role": "user", "content": "Is it warm in Bern?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "21"},
    {"role": "assistant", "content": "yes, warm"},
]


def messages(talk):
    return [{"role": role, "content": text} for role, text in talk]


def tokenizer_of(name):
    """A small tokenizer with this template, and all that it writes as special tokens."""
    file, end, _ = TEMPLATES[name]
    tokenizer = _tokenizer(chat=True)
    if file:
        tokenizer.chat_template = file.read_text()
        found = sorted({*SPECIAL.findall(tokenizer.chat_template), "<s>", "</s>"})
        tokenizer.add_special_tokens(
            {"additional_special_tokens": found, "bos_token": "<s>", "eos_token": (SPECIAL.findall(end) or [end])[-1]}
        )
    return tokenizer


@cache
def task_of(*overrides):
    return peftrun.load("task=chat", f"task.data.path={__file__}", *overrides).task


def row_of(tokenizer, row, *overrides):
    """What is made of a file's first row."""
    task = task_of(*overrides)
    made = causal_lm._encode_fitting(
        [render_example("row 1", row, task, ())], task, Encoder(tokenizer, task), "training", Tally()
    )
    return made[0]


def learned(row, tokenizer):
    """The text of each run of tokens that carry loss."""
    spans = row.learned or [(len(row.prompt), len(row.ids))]
    assert all(
        row.labels[place] == (row.ids[place] if any(a <= place < b for a, b in spans) else IGNORE_INDEX)
        for place in range(len(row.ids))
    )
    return [tokenizer.decode(row.ids[a:b]) for a, b in spans]


@cases("name", TEMPLATES)
def test_what_is_learned_is_the_templates_own_rendering(name, capsys):
    """And what `generate` asks is its beginning, but for a block of thoughts that a template opens only before an answer that is to come."""
    tokenizer, (_, end, opening) = tokenizer_of(name), TEMPLATES[name]
    capsys.readouterr()
    row = row_of(tokenizer, {"messages": messages(TALK)}, *EVERY)
    assert row.ids == tokenizer.apply_chat_template(messages(TALK))["input_ids"]
    assert [one.removeprefix(opening) for one in turns(row, tokenizer, end)] == [TALK[1][1] + end, TALK[3][1] + end]
    prompt = Encoder(tokenizer, task_of()).prompt(Conversation(tuple(map(Message, messages(TALK[:3])))))
    thinks = tokenizer.decode(prompt[len(row.prompt) :])
    assert prompt[: len(row.prompt)] == row.prompt and thinks == ("<think>\n" if name == "deepseek" else "")
    assert ("the template opens an answer with '<think>" in capsys.readouterr().err) is bool(thinks)
    if name in CALL_TOOLS:
        row = row_of(tokenizer, {"messages": CALLING, "tools": [TOOL]}, *EVERY)
        assert (
            row.ids
            == tokenizer.apply_chat_template(as_rendered(name), tools=[{"type": "function", "function": TOOL}])[
                "input_ids"
            ]
        )
        call, answer = turns(row, tokenizer, end)
        assert "weather" in call and "Bern" in call and call.endswith(end) and answer.endswith(f"yes, warm{end}")


EVERY = ("task.loss_on=assistant", "task.max_length=4096")


def turns(row, tokenizer, end):
    """What is learned, each up to the end of its turn."""
    return [one[: one.index(end) + len(end)] for one in learned(row, tokenizer)]


def as_rendered(name):
    """The calls as the template wants them: arguments as an object, or as text."""
    called = {**CALL, "function": {**CALL["function"], "arguments": {"city": "Bern"}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [CALL if name == "deepseek" else called]}
    return [CALLING[0], turn, *CALLING[2:]]


def talk(*turns, **more):
    """A row that asks something, with these answers."""
    return {"messages": [{"role": "user", "content": "Is it?"}, *turns], **more}


def answer(text="yes", **more):
    return {"role": "assistant", "content": text, **more}


QUESTION = {"role": "user", "content": "Really?"}


@cases(
    "row, overrides, found",
    [
        # Parts of a content, and other forms of a message.
        (talk(answer([{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}])), [], ["yes<|im_end|>\n"]),
        (talk(answer([{"type": "image_url", "image_url": {"url": "x"}}])), [], "row 1: column messages, message 2: .*part of type image_url"),
        (talk(answer(["yes"])), [], "row 1: .*part of type a text"),
        (talk(answer({"a": 1})), [], "row 1: .*its content is an object"),
        (talk(answer(7)), [], "row 1: .*its content is a number"),
        ({"messages": [{"from": "human", "value": {"a": 1}}, answer()]}, [], "message 1: its content is an object"),
        (talk(answer(None)), [], "row 1: column messages, message 2: is empty"),
        (talk("yes"), [], r"row 1: column messages must hold \[\{role, content\}, …\]"),
        ({"messages": "hi"}, [], "row 1: column messages must hold"),
        # Calls of tools that the template does not write, and such that are none.
        (talk(answer(None, tool_calls=[CALL])), [], "row 1: the model's chat template does not write tool_calls, .*message 2"),
        (talk(answer("yes", function_call=CALL["function"])), [], "does not write tool_calls"),
        (talk(answer(tool_calls=[{"function": {"name": "f", "arguments": "{"}}])), [], "row 1: .*arguments of its call of f are not JSON"),
        (talk(answer(tool_calls=[{"type": "function"}])), [], "row 1: .*names no function"),
        (talk(answer(), tools="no JSON"), [], "row 1: column tools: is not JSON"),
        # Answers that carry no loss.
        (talk(answer("yes", weight=0), QUESTION, answer("no")), ["task.loss_on=assistant"], ["no<|im_end|>\n"]),
        (talk(answer("yes", train=False), QUESTION, answer("no", weight=1)), ["task.loss_on=assistant"], ["no<|im_end|>\n"]),
        (talk(answer("yes"), QUESTION, answer("no", weight=0)), ["task.loss_on=assistant"], ["yes<|im_end|>\n"]),
        (talk(answer("yes", weight=0)), ["task.system_prompt=Hi"], "every answer of the 1 training rows has weight 0 or train false"),
        (talk(answer("yes", weight=0.5)), [], "message 2: its weight must be 0 or 1"),
        (talk(answer("yes", weight=0), QUESTION, answer("no")), ["task.loss_on=all"],
         ["<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"]),
        ({"messages": [answer("no"), *talk(answer())["messages"]]}, ["task.loss_on=assistant"], ["no<|im_end|>\n", "yes<|im_end|>\n"]),
        # Special tokens of the model in a text.
        (talk(answer("a<|im_end|>b")), [], ["a<|im_end|>b<|im_end|>\n"]),
        (talk(answer("a<|im_end|>b")), ["task.special_tokens_in_text=refuse"], r"row 1: holds the special token <\|im_end\|>; .*=escape"),
        (talk(answer("b"), system="a"), ["task.tools=nosuch.json"], "task.tools=nosuch.json: there is no such file"),
        (talk(answer("b")), ["task.template_arguments={tokenize: false}"], "task.template_arguments.tokenize: is set by peftrun"),
        # TRL's columns, under templates.
        ({"p": talk()["messages"], "c": [answer()]}, ["task.messages_column=null", "task.prompt_template='{p}'", "task.completion_template='{c}'"], ["yes<|im_end|>\n"]),
        ({"p": "Is it?", "c": answer()}, ["task.messages_column=null", "task.prompt_template='{p}'", "task.completion_template='{c}'"], ["yes<|im_end|>\n"]),
        ({"p": talk(answer())["messages"], "c": "a"}, ["task.messages_column=null", "task.prompt_template='{p}'", "task.completion_template='{c}'"], "column p ends with an answer"),
        ({"p": "a", "c": [answer(), answer()]}, ["task.messages_column=null", "task.prompt_template='{p}'", "task.completion_template='{c}'"], "column c holds 2 messages"),
    ],
    ids=lambda case: json.dumps(case[0])[:60],
)  # fmt: skip
def test_a_row_is_learned_as_it_says_or_refused(llama, row, overrides, found):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    if isinstance(found, str):
        with pytest.raises(Exception, match=found):
            row_of(tokenizer, row, *overrides)
    else:
        assert learned(row_of(tokenizer, row, *overrides), tokenizer) == found


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Marks that begin or end with what no token of some tokenizers holds, or at the very first token.
STRIPPED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{% generation %} {{ m.content }} <|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }} {% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %} {{ m.content }}{% endif %}{% endfor %}"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{{ mark }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JOINED = "{% for m in messages %}<|im_start|>{{ m.role }} t{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant t{% endif %}"
FORGETTING = "{% for m in messages %}{% if loop.last %}{{ m.content }}<|im_end|>{% else %}x{% endif %}{% endfor %}"


@cases(
    "template, row, overrides, parts, said",
    [
        # The template marks the answers itself.
        (MARKED, talk(answer("yes"), QUESTION, answer("no")), ["task.loss_on=assistant"], ["yes<|im_end|>", "no<|im_end|>"], ""),
        (MARKED, talk(answer("yes"), QUESTION, answer("no")), [], ["no<|im_end|>"], ""),
        (MARKED, talk(answer("yes", train=False), QUESTION, answer("no")), ["task.loss_on=assistant"], ["no<|im_end|>"], ""),
        # What it is given and does not write is said; what it writes is learned.
        (None, talk(answer(reasoning_content="so", name="Ann")), [], ["yes<|im_end|>\n"], "reasoning_content is not written"),
        (None, talk(answer(name="Ann"), tools=json.dumps([TOOL])), [], ["yes<|im_end|>\n"], "tools is not written"),
        (THINKING, talk(answer(reasoning_content="so")), ["task.template_arguments={mark: '!'}"], ["<think>so</think>yes!<|im_end|>\n"], ""),
        (None, talk(answer()), ["task.template_arguments={marc: '!'}"], ["yes<|im_end|>\n"], "marc: the model's chat template does not use this name"),
        # Special tokens of the model, as text.
        (None, talk(answer("a<|im_end|>b")), [], ["a<|im_end|>b<|im_end|>\n"], "<|im_end|> in the text is read as the model's special token"),
        (None, talk(answer("a<|im_end|>b")), ["task.special_tokens_in_text=escape"], ["a<|im_end|>b<|im_end|>\n"], "is read as plain text"),
        # A token that reaches across the end of the prompt.
        (JOINED, talk(answer("he")), [], [" the<|im_end|>\n"], "an answer's first token begins with ' t'"),
        # A beginning that is not found again.
        (FORGETTING, talk(answer()), [], "renders the prompt differently once it is answered", ""),
    ],
    ids=lambda case: json.dumps(case[1:])[:70],
)  # fmt: skip
def test_what_the_template_makes_of_a_row(llama, capsys, template, row, overrides, parts, said):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = template or tokenizer.chat_template
    if isinstance(parts, str):
        with pytest.raises(DataError, match=f"row 1: .*{parts}"):
            row_of(tokenizer, row, *overrides)
        return
    capsys.readouterr()
    found = row_of(tokenizer, row, *overrides)
    assert learned(found, tokenizer) == parts
    told = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "(1 training rows, the first: " in line or "template_arguments" in line
    ]
    assert any(said in line for line in told) if said else not told
    ends_of_turns = found.ids.count(tokenizer.eos_token_id)
    assert ends_of_turns == len(row["messages"]) + ("a<|im_end|>b" in str(row) and not overrides)


def test_what_a_template_marks_ends_where_it_says(llama):
    """Also beside whitespace that the tokenizer strips, where transformers' own mask runs on to the end."""
    talk = Conversation(tuple(map(Message, messages(TALK))))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    stripping = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for template, conversation, expected in (
        (STRIPPED, talk, ["yes,bad<|im_end|>", "nôitisgood<|im_end|>"]),
        (BARE, Conversation((Message(role="assistant", content="a"), talk.messages[0])), ["a"]),
    ):
        tokenizer.chat_template, tokenizer.backend_tokenizer.pre_tokenizer = template, stripping
        found = ChatTemplate(tokenizer, {})
        ids = found.ids(conversation)
        assert [tokenizer.decode(ids[begin:end]) for begin, end in found.find_assistant_spans(conversation)] == expected


def closing(folder):
    """A tokenizer that puts an end token behind every text."""
    build_gpt2(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_one_end_token_at_the_end_and_none_in_between(tmp_path):
    tokenizer = closing(tmp_path / "closing")
    assert tokenizer("yes")["input_ids"][-1] == tokenizer.eos_token_id
    task = ("task=instruction", "task.messages_column=null")
    row = row_of(tokenizer, {"prompt": "Is it?", "completion": "yes"}, *task)
    assert tokenizer.decode(row.ids) == "Is it?\nyes<|endoftext|>"
    text = row_of(tokenizer, {"text": "Is it spam?"}, "task=plain_text")
    assert tokenizer.decode(text.ids) == "Is it spam?<|endoftext|>"
    twice = row_of(tokenizer, {"text": "Is it spam?<|endoftext|>"}, "task=plain_text")
    assert twice.ids == text.ids
    with pytest.raises(DataError, match="has tool_calls, and the model has no chat template"):
        row_of(tokenizer, talk(answer(None, tool_calls=[CALL])))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"has no end token.*model.special_tokens={eos:"):
        row_of(tokenizer, {"text": "Is it spam?"}, "task=plain_text")


def test_all_that_writes_ends_at_the_same_tokens(cli, tmp_path, on_tiny):
    """A second end token, which only the generation config names: generate, metrics, samples and the server stop there, as transformers does."""
    folder = build_llama(tmp_path / "two-ends")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    greedy = net.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :].tolist()
    second = next(token for place, token in enumerate(greedy) if place and token not in greedy[:place])
    net.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
    net.save_pretrained(folder)
    expected = tokenizer.decode(greedy[: greedy.index(second) + 1], skip_special_tokens=True).strip()
    said = cli(*on_tiny(folder), "action=generate", "action.prompt=hi", "action.max_new_tokens=8")
    row = json.loads((said.run_dir / "generations.jsonl").read_text())
    assert row["answer"] == expected
    assert end_tokens.find_end_tokens(net, tokenizer) == [tokenizer.eos_token_id, second]
    tokenizer.eos_token = "<|endoftext|>"  # then only the template says how a turn ends
    net.generation_config.eos_token_id = None
    assert end_tokens.find_end_tokens(net, tokenizer) == [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]


def test_answers_keep_within_the_models_positions(cli, tmp_path, gpt2, data, on_tiny):
    """GPT-2's positions are a table: what lies beyond is no answer but an error."""
    long = "a " * 120
    rows = [{"prompt": f"{long}{n}", "completion": "yes"} for n in range(12)]
    given = [
        *on_tiny(gpt2),
        f"task.data.path={jsonl(tmp_path / 'long.jsonl', rows)}",
        "task.data.num_test_rows=4",
        "task.max_length=256",
    ]
    asked = [*given, "action=generate", "action.max_new_tokens=128"]
    done = cli(*asked, f"action.prompt='{long}'")
    assert done.code == 0 and json.loads((done.run_dir / "generations.jsonl").read_text())["prompt"] == long
    full = cli(*asked, f"action.prompt='{long * 3}'")
    assert full.code == 1 and "has 256 positions, including those of the answer; shorten it" in full.err
    drawn = ["task=grpo", "task.data.source=file", "task.prompt_template='{prompt}'", "task.completion_template='{completion}'", "task.data.label_column=null",
             "task.data.labels=null", "task.data.balance=false", "task.objective.max_completion_length=200"]  # fmt: skip
    told = cli(*given, *drawn, *TINY_STEPS)
    assert told.code == 1 and "row " in told.err and "type task.objective.max_completion_length=" in told.err
    learning = cli(*given, "task.metrics=[rouge_l]", *TINY_STEPS[:-1], "action.num_samples=2")
    assert learning.code == 0, learning.err

"""What users of other tools type is answered with what to type here; the table says what the guides say."""

import shlex

import translate
from cases import cases

from peftrun.checks import peer_keys
from peftrun.checks.unknown_keys import find_nearest_key, is_secret
from peftrun.cli import flags
from peftrun.composition import compose
from peftrun.data import columns

TOOLS = ("axolotl", "llama-factory", "trl")
PROBES = (
    "true",
    "false",
    "1",
    "4",
    "8",
    "auto",
    "dpo",
    "orpo",
    "sft",
    "lora",
    "full",
    "all",
    "q_proj",
    "0.1",
    "adamw_bnb_8bit",
    "none",
    "fa2",
    "bnb",
    "16",
    "-1",
    "steps",
)
OTHERWISE = {
    "torch_dtype",
    "dtype",
    "dpo_label_smoothing",
    "top_p",
}  # not needed by the guides, and a key here; of two tools


def said_by_guide(cell: str, value: str) -> list[str] | None:
    """None: the guide does not say what becomes of this value."""
    try:
        return translate.overrides_in(cell, value)
    except KeyError:
        return None


@cases("tool", TOOLS)
def test_the_table_says_what_the_guides_say(tool):
    known, wrong = compose.list_default_keys(), {}
    for key, cell in translate.tables(tool)["mapped"].items():
        if "." in key or key in {"columns", "command", *OTHERWISE}:  # keys here too, or none of a command line
            continue
        if key not in peer_keys.read_keys():
            found = find_nearest_key(key, known)
            unneeded = key in peer_keys.read_omitted() or is_secret(key, "")
            answered = unneeded if cell.startswith(translate.NOTHING) else found and f"{found}=" in cell
            if not answered and key not in OTHERWISE and not cell.startswith(translate.BY_HAND):
                wrong[key] = cell
            continue
        if cell.startswith(translate.BY_HAND):
            continue
        for value in PROBES if translate.cases(cell) else ["0.1"]:
            guide, here = said_by_guide(cell, value), shlex.split(peer_keys.translate_key(key, value) or "")
            listed = not isinstance(peer_keys.read_keys()[key], dict) or value in peer_keys.read_keys()[key]
            epochs = [one for one in here if one != "trainer=epochs"]
            if guide is not None and listed and peer_keys.read_keys()[key] != peer_keys.ROWS and guide != epochs:
                wrong[key, value] = (guide, here)
    assert not wrong


# One composition, several words → what each must be told; `-`: no advice at all.
TYPED = [
    {
        "lora_r=8": "type lora.r=8", "epochs=3": "type trainer=epochs trainer.num_train_epochs=3", "lr=1e-4": "type trainer.learning_rate=1e-4",
        "batch_size=2": "type trainer.per_device_train_batch_size=2", "output_dir=out": "type hydra.run.dir=out",
        "max_seq_length=512": "type task.max_length=512", "learning_rate=1e-4": "type trainer.learning_rate=1e-4",
        "data=mine.jsonl": "type task=instruction task.data.path=mine.jsonl", "train_file=ORG/ROWS": "task.data.source=hub task.data.path=ORG/ROWS",
        "load_in_4bit=true": "type model.quantization=nf4", "use_unsloth=true": "is not needed: omit it",
        "dataset=faq.csv": "type task=instruction 'task.prompt_template=\"{question}\"' 'task.completion_template=\"{answer}\"' task.data.path=faq.csv",
    },
    {
        "trainer.batch_size=2": "type trainer.per_device_train_batch_size=2", "trainer.output_dir=x": "type hydra.run.dir=x",
        "trainer.per_device_batch_size=2": "type trainer.per_device_train_batch_size=2", "trainer.seed=1": "type seed=1",
        "trainer.max_epochs=3": "type trainer=epochs trainer.num_train_epochs=3", "trainer.fp16=true": "type device.dtype=float16",
        "task.data.file=mine.jsonl": "type task.data.path=mine.jsonl", "task.data.files=x": "type task.data.path=x",
        "lora.rank=4": "type lora.r=4", "lora.rr=4": "did you mean lora.r?", "trainer.max_stepss=4": "did you mean trainer.max_steps?",
        "trainer.sigma=1": "`peftrun --cfg job` lists every key", "name=x": "`peftrun --cfg job` lists every key",
    },
    {
        "lora=qlora": "type experiment=qlora", "task=sft": "type task=instruction", "trainer=dpo": "type experiment=dpo",
        "action=resume": "type action.resume=auto", "model=ORG/NAME": "type model=pretrained model.name_or_path=ORG/NAME",
        "device=gpu": "type device=cuda", "tracker=wandbb": "did you mean wandb?", "experiment=nosuch": "type experiment=OPTION",
    },
    {"task=faq.csv": "type task=instruction 'task.prompt_template=\"{question}\"' 'task.completion_template=\"{answer}\"' task.data.path=faq.csv"},
    {"model=here": "type model=pretrained model.name_or_path=here", "task=mine.jsonl": "type task=instruction task.data.path=mine.jsonl"},
    {"train": "type action=train", "config.yaml": "--config-dir FOLDER experiment=NAME", "dpo": "type experiment=dpo", "lora.r": "quote what holds"},
    {"action=generate": "", "temprature=1": "did you mean action.temperature?", "action.max_new_token=5": "did you mean action.max_new_tokens?"},
    {"task.data=faq.csv": "type task.data.path=faq.csv", "model.quantization=8bit": "type model.quantization=int8"},
    {
        "trainr=epochs": "did you mean trainer?", "modle=x": "did you mean model?", "experimnt=dpo": "did you mean experiment?",
        "optimizer=adamw": "type trainer.optim=adamw_torch", "model.path=/x": "type model=pretrained model.name_or_path=/x",
        "quantization=4bit": "type model.quantization=nf4",
    },
    {
        "val_set_size=0.05": "type task.data.num_validation_rows=100 trainer.eval_strategy=steps", "val_size=200": "type task.data.num_validation_rows=200 trainer.eval_strategy=steps",
        "datasets=[{path: ORG/ROWS, type: alpaca}]": "type task=instruction task.data.source=hub task.data.path=ORG/ROWS", "report_to=[wandb]": "type tracker=wandb",
        "report_to=all": "type tracker=NAME, one of wandb", "lora_target=[q_proj,v_proj]": "type lora.target_modules=[q_proj,v_proj]", "bf16=false": "omit it",
        "num_train_epochs=3": "type trainer=epochs trainer.num_train_epochs=3", "gradient_checkpointing=unsloth": "type trainer.gradient_checkpointing=true",
        "optim=adamw_bnb_8bit": "type trainer.optim=adamw_8bit", "pure_bf16=true": "type device.dtype=bfloat16", "loftq_config=null": "omit it",
        "adapter_name_or_path=out": "type adapter=out", "special_tokens=null": "omit it", "special_tokens={pad_token: a}": "type 'model.special_tokens={pad: a}'",
        "chat_template=phi_35": "type model.chat_template=phi3_5", "lr_scheduler_kwargs={min_lr: 1e-5}": "type 'trainer.lr_scheduler_kwargs={min_lr: 1e-5}'",
        "evals_per_epoch=4": "type trainer.eval_strategy=epoch task.data.num_validation_rows=100", "liger_rope=true": "type trainer.use_liger_kernel=true",
    },
    {"model.name_or_path=ORG/NAME": "type model=pretrained model.name_or_path=ORG/NAME"},
]  # fmt: skip


@cases("typed", TYPED, ids=lambda typed: next(iter(typed)), every=3)
def test_what_is_nearly_right_is_answered_with_what_to_type(typed, tmp_path):
    (tmp_path / "faq.csv").write_text("question,answer\na,b\n")
    (tmp_path / "here").mkdir()
    lines = compose.explain_overrides(list(typed), None)
    typed = {word: told for word, told in typed.items() if told}  # the others are right
    assert len(lines) == len(typed), lines
    for word, told in typed.items():
        line = next(line for line in lines if line.startswith(f"{word}: "))
        assert told in line, line


@cases("words, told", [
        (["--lora_r", "8"], ["--lora_r 8: values are set by key=value; type lora.r=8"]),
        (["--learning-rate=1e-4", "--model", "ORG/NAME"], ["type trainer.learning_rate=1e-4", "type model=pretrained model.name_or_path=ORG/NAME"]),
        (["--use_unsloth", "seed=1"], ["--use_unsloth: values are set by key=value; this flag of another tool is not needed here: omit it"]),
        (["--config", "x.yaml"], ["--config x.yaml: no file of values can be passed"]),
        (["action=generate", "--prompt", "hi"], ["type prompt=hi"]),
        (["--nosuch"], ["--nosuch: there is no such flag"]),
        (["--cfg"], ["--cfg: expected one argument"]),
        (["--multi", "seed=1,2"], []),
    ])  # fmt: skip
def test_flags_of_other_tools_are_answered(words, told):
    lines = flags.parse_flags(words)[1]
    assert len(lines) == len(told) and all(part in line for part, line in zip(told, lines, strict=True)), lines


@cases("row, told", [
        ('{"prompt": "a", "completion": "b"}', "task=instruction"),
        ('{"messages": []}', "task=chat"),
        ('{"conversations": []}', "task=chat task.messages_column=conversations"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "task=preferences"),
        ('{"question": "a", "chosen": "b", "rejected": "c"}', "task=preferences 'task.prompt_template=\"{question}\"'"),
        ('{"instruction": "a", "input": "", "output": "c"}', "task=instruction 'task.prompt_template=\"{instruction}\\n\\n{input?}\"' 'task.completion_template=\"{output}\"'"),
        ('{"text": "a"}', "task=plain_text"),
        ('{"a": 1}', None),
        ("no json", None),
    ])  # fmt: skip
def test_the_task_that_columns_look_like(row, told, tmp_path):
    (tmp_path / "r.jsonl").write_text(row)
    assert columns.guess_task(tmp_path / "r.jsonl") == told

"""Keys that name rows: sources, their columns and their sizes. Light."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftrun.config.peers import tables
from peftrun.config_tools.peer_import.translation import (
    PeerConfig,
    Translation,
    carry,
    leave_out,
    parse_overrides,
    split_list,
    translate_by_row,
)
from peftrun.data import columns, sources

ROWS = "task.data"
SOURCE, PATH, MIXTURE = f"{ROWS}.source", f"{ROWS}.path", f"{ROWS}.mixture"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")
ALL_ROWS = "it takes all rows of each source, here `weight: 1.0` takes as many of this one as of the first"
UNKNOWN_COLUMNS = "its columns are not known here: task=chat reads a column messages; for others choose task= and its columns (action=preview shows rows)"
OTHER_KIND = "a further source must be of the same kind and columns as the first; put their rows into one file"
UNKNOWN_PREFERENCES = "its columns are not known here; action=preview shows rows"
PAIRS: dict[str, Any] = {"task.messages_column": None, "task.prompt_template": "{prompt}", "task.chosen_column": "chosen", "task.rejected_column": "rejected"}  # fmt: skip
PREFERENCE_COLUMNS: dict[str, dict[str, Any]] = {  # TRL's command → the columns that it reads
    "dpo": PAIRS,
    "orpo": PAIRS,
    "kto": {"task.messages_column": None, "task.prompt_template": "{prompt}", "task.completion_template": "{completion}", "task.desirable_column": "label"},
    "grpo": {"task.prompt_template": "{prompt}"},
}  # fmt: skip
NO_PLACE = "is no file and no dataset of the Hub; type task.data.path=FILE"
INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
NOT_IN_INFO = f"a name in {INFO}, which is not in {{}}; type task.data.path=FILE, and the task and columns that fit"


def locate_rows(path: str) -> dict[str, Any] | None:
    """The settings of a file or a dataset on the Hub; None for any other place."""
    file = Path(path).expanduser()
    if file.is_file() or path.endswith(SUFFIXES):
        return {SOURCE: "file", PATH: path}
    if file.exists() or path.startswith((".", "/", "~")) or "://" in path:
        return None
    return {SOURCE: "hub", PATH: path}


def guess_task(settings: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the task that a file's columns fit; None if they are not known."""
    guessed = columns.guess_task(Path(settings[PATH]).expanduser()) if settings[SOURCE] == "file" else None
    return dict(parse_overrides(guessed)) if guessed else None


def mix_sources(key: str, others: Iterable[tuple[str, dict[str, Any]]], first: dict[str, Any], note: str = ALL_ROWS) -> list[Translation]:  # fmt: skip
    """Further sources. `others`: path → entry of the mixture, without its path."""
    mixture: dict[str, Any] = {}
    lines: list[Translation] = []
    for path, entry in others:
        place = locate_rows(path)
        if place and place[SOURCE] == first.get(SOURCE):
            mixture["more" if not mixture else f"more{len(mixture) + 1}"] = {"path": place[PATH], **entry}
        else:
            lines += leave_out(key, path, OTHER_KIND)
    return (carry(key, [entry["path"] for entry in mixture.values()], {MIXTURE: mixture}, note) if mixture else []) + lines  # fmt: skip


def translate_axolotl_sources(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """axolotl's list of sources: the keys of the first, and the others as a mixture if they are read the same way."""
    first, *others = [source if isinstance(source, dict) else {"path": source} for source in split_list(value)]
    place = locate_rows(str(first.get("path")))
    lines = _translate_source_keys(config, key, first, place)
    alike = [source for source in others if _get_reading(source) == _get_reading(first)]
    lines += mix_sources(key, ((str(source.get("path")), _get_mixture_entry(source)) for source in alike), place or {})
    for source in others:
        if source not in alike:
            lines += leave_out(key, source.get("path"), OTHER_KIND)
    return lines


def _translate_source_keys(
    config: PeerConfig, owner: str, source: dict[str, Any], place: dict[str, Any] | None
) -> list[Translation]:
    rows, lines = tables.read_table(config.tool).rows, []
    for name, value in source.items():
        key = f"datasets.{name}"
        shown = f"{owner}.{name}"
        if value in (None, "", [], {}):
            continue
        if name == "path":
            lines += carry(shown, value, place) if place else leave_out(shown, value, NO_PLACE)
        elif name == "type" and isinstance(value, dict):
            lines += _translate_user_defined(shown, value)
        elif name == "type" and isinstance(rows[key].to, dict) and str(value) not in rows[key].to:
            lines += leave_out(shown, value, "types are column templates: write them into task.prompt_template and task.completion_template")  # fmt: skip
        elif key in rows:
            translated = translate_by_row(rows[key], shown, value)
            lines += _drop_task(translated) if {"rl", "reward_model"} & {*config.keys} else translated
        else:
            lines += leave_out(shown, value, "its table has no such key; look it up in axolotl's documentation")
    return lines


def _drop_task(lines: list[Translation]) -> list[Translation]:
    """The lines without a choice of the task, which another key makes."""
    for line in lines:
        line.settings.pop("task", None)
    return lines


def _translate_user_defined(key: str, value: dict[str, Any]) -> list[Translation]:
    """axolotl's own templates: its names of columns, in a format in which they are called instruction and input."""
    instruction, text = value.get("field_instruction", "instruction"), value.get("field_input", "input")
    template = str(value.get("format", "{instruction} {input} ")).replace("{input}", f"{{{text}?}}")
    settings = {
        "task": "instruction",
        "task.prompt_template": template.replace("{instruction}", f"{{{instruction}}}"),
        "task.completion_template": f"{{{value.get('field_output', 'output')}}}",
        **({"task.system_prompt": value["system_prompt"]} if value.get("system_prompt") else {}),
    }
    return carry(key, value, settings, "rows without an input use the same format here, no_input_format there")


def _get_reading(source: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name not in ("path", "split", "name")}


def _get_mixture_entry(source: dict[str, Any]) -> dict[str, Any]:
    names = {"name": "config_name", "split": "split"}
    return {"weight": 1.0, **{ours: source[name] for name, ours in names.items() if source.get(name)}}


def translate_pretraining_sources(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """axolotl's streamed plain text."""
    sources_of_text = [
        {"type": "completion", **(source if isinstance(source, dict) else {"path": source})}
        for source in split_list(value)
    ]
    for source in sources_of_text:
        source["type"] = "completion"  # `pretrain` is its name for the same
        source["field"] = source.pop("text_column", source.get("field", "text"))
    packing = {"trainer.packing": True, f"{ROWS}.streaming": True}
    return [*carry(key, value, packing), *translate_axolotl_sources(config, key, sources_of_text)]


def translate_test_sources(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """axolotl's sources of evaluation rows: a file, or another split of the training rows' dataset."""
    first, *others = split_list(value)
    path = str(first.get("path") if isinstance(first, dict) else first)
    training = split_list(config.keys.get("datasets", [{}]))[0]
    if Path(path).suffix in SUFFIXES and not others:
        return carry(key, value, {f"{ROWS}.test_path": path})
    if isinstance(first, dict) and isinstance(training, dict) and path == training.get("path") and not others:
        return carry(key, value, {f"{ROWS}.test_split": first.get("split", "train")})
    return leave_out(key, value, tables.read_table(config.tool).rows[key].by_hand)


def translate_named_sources(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """LLaMA-Factory's names, by its dataset_info.json."""
    folder = Path(str(config.keys.get("dataset_dir", "data")))
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        info = {}
    places = {name: _locate_named(info[name], folder) for name in split_list(value) if name in info}
    unknown = [name for name in split_list(value) if not places.get(name)]
    (first, place), *others = [(name, found) for name, found in places.items() if found] or [("", {})]
    missing = leave_out(key, unknown, NOT_IN_INFO.format(folder)) if unknown else []
    if not place:
        return missing
    entry = info[first]
    lines = carry(key, first, place | _read_named_columns(entry, str(config.keys.get("stage", "sft"))))
    alike = {name: found for name, found in others if info[name].get("columns") == entry.get("columns") and info[name].get("formatting") == entry.get("formatting")}  # fmt: skip
    lines += mix_sources(
        key, ((found[PATH], {"weight": 1.0}) for found in alike.values()), place, "it takes all rows of each source, or as `mix_strategy` says; here `weight: 1.0` takes as many of this one as of the first"
    )  # fmt: skip
    lines += [line for name, _ in others if name not in alike for line in leave_out(key, name, OTHER_KIND)]
    return lines + missing


def _locate_named(entry: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    if "hf_hub_url" in entry:
        place = {SOURCE: "hub", PATH: entry["hf_hub_url"]}
        names = {"subset": "config_name", "split": "split"}
        return place | {f"{ROWS}.{ours}": entry[name] for name, ours in names.items() if entry.get(name)}
    return {SOURCE: "file", PATH: str(folder / entry["file_name"])} if "file_name" in entry else None


def _read_named_columns(entry: dict[str, Any], stage: str) -> dict[str, Any]:
    """The task's columns, of an entry of dataset_info.json."""
    names = entry.get("columns") or {}
    answers = {f"task.{name}_column": names[name] for name in ("chosen", "rejected") if names.get(name)}
    if names.get("kto_tag"):
        answers["task.desirable_column"] = names["kto_tag"]
    if entry.get("formatting", "alpaca") != "alpaca":
        chat = {"task": "chat", "task.loss_on": "assistant"} if stage == "sft" else {}
        return chat | {"task.messages_column": names.get("messages", "conversations")} | answers
    names = entry.get("columns") or ALPACA
    if stage == "pt":
        return {"task.completion_template": f"{{{names.get('prompt', 'instruction')}}}"}
    templates = {
        "task.prompt_template": f"{{{names.get('prompt', 'instruction')}}}" + (f"\n{{{names['query']}?}}" if names.get("query") else ""),
        "task.completion_template": f"{{{names.get('response', 'output')}}}",
    }  # fmt: skip
    if stage == "sft":
        return {"task": "instruction"} | templates
    single = {} if "chosen" not in names else {"task.completion_template": None}
    return {"task.messages_column": None} | templates | single | answers


def translate_hub_or_file(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """TRL's dataset, whose columns choose the task."""
    place = locate_rows(str(value))
    if not place:
        return leave_out(key, value, NO_PLACE)
    if config.command not in ("", "sft"):
        return carry(key, value, place | PREFERENCE_COLUMNS.get(config.command, {}), UNKNOWN_PREFERENCES)
    guessed = guess_task(place)
    chosen = guessed or {"task": "chat"}
    whole = {"task.loss_on": "all"} if chosen["task"] == "chat" else {}  # TRL trains on questions too
    return carry(key, value, place | chosen | whole, "" if guessed else UNKNOWN_COLUMNS)


def translate_mixer(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """The alignment handbook's mapping of dataset → share of its rows."""
    (path, share), *others = value.items()
    lines = translate_hub_or_file(config, key, path)
    if share != 1:
        lines += leave_out(key, {path: share}, "a share of the first source's rows; type task.data.num_train_rows=ROWS")
    return lines + mix_sources(
        key, ((name, {"weight": float(part)}) for name, part in others if part > 0), lines[0].settings,
        "there a weight is a share of the source's own rows, here of the number of rows of the first source",
    )  # fmt: skip


def translate_mixture(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """TRL's list of datasets."""
    first, *others = value["datasets"]
    lines = translate_hub_or_file(config, key, first.get("id") or first.get("path"))
    names = {"config": "config_name", "split": "split"}
    lines[0].settings |= {f"{ROWS}.{ours}": first[name] for name, ours in names.items() if first.get(name)}
    entries = (
        (
            str(source.get("id") or source.get("path")),
            {"weight": float(source.get("weight", 1.0))} | {ours: source[name] for name, ours in names.items() if source.get(name)},
        )
        for source in others
    )  # fmt: skip
    return lines + mix_sources(
        key, entries, lines[0].settings, "there a weight is a share of the source's own rows, here of the number of rows of the first source"
    )  # fmt: skip


def translate_splits(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """The handbook's splits: the first is trained on, the second evaluated."""
    train, *held_out = split_list(value)
    test = {f"{ROWS}.test_split": held_out[0]} if held_out else {}
    return carry(key, value, {f"{ROWS}.split": train} | test)


def translate_config_names(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """The handbook's configurations, one a source."""
    first, *others = split_list(value)
    lines = carry(key, first, {f"{ROWS}.config_name": first})
    return lines + leave_out(key, others, "write `config_name` into the mixture") if others else lines


def translate_swift_sources(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """ms-swift's `PATH:SUBSET#COUNT`. Its datasets are ModelScope's unless `use_hf` is set."""
    (path, count), *others = [_split_swift_source(str(source)) for source in split_list(value)]
    place = locate_rows(path)
    if not place or (place[SOURCE] == "hub" and not config.keys.get("use_hf")):
        row = tables.read_table(config.tool).rows[key]
        return leave_out(key, value, f"a dataset of ModelScope: download it, and type task.data.path=FILE ({row.note.partition('Columns: ')[2]})")  # fmt: skip
    guessed = guess_task(place)
    task = (guessed or {"task": "chat"}) if config.command == "sft" else {}
    size = {f"{ROWS}.num_train_rows": count} if count else {}
    lines = carry(key, value, place | task | size, "" if guessed or not task else UNKNOWN_COLUMNS)
    return lines + mix_sources(key, ((name, {"weight": 1.0}) for name, _ in others), place)


def _split_swift_source(text: str) -> tuple[str, int | None]:
    path, _, count = text.partition("#")
    head, sign, subset = path.rpartition(":")
    path = head if sign and not subset.startswith("//") else path
    return path, int(count) if count.isdigit() else None


def translate_test_file(config: PeerConfig, key: str, value: Any) -> list[Translation]:
    """A file of evaluation rows; any other place has no counterpart."""
    file, *others = split_list(value)
    if str(file).endswith(SUFFIXES) and not others:
        return carry(key, value, {f"{ROWS}.test_path": str(file)})
    return leave_out(key, value, tables.read_table(config.tool).rows[key].by_hand)


def count_rows(settings: dict[str, Any]) -> int | None:
    """The rows of the training file; None if it is not a file on this disk."""
    file = Path(str(settings.get(PATH))).expanduser()
    if settings.get(SOURCE) != "file" or not file.is_file() or file.suffix not in sources.READERS:
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in sources.READERS[file.suffix](stream))

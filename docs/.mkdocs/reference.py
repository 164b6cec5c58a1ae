"""The reference: a page for each group of conf/, made of its YAML files and its JSON Schema."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"
ORDER = ("action", "model", "lora", "task", "trainer", "device", "tracker", "experiment", "hydra-launcher")
ABOUT = {
    "action": "What is done. `action.` may be left out before a key of the action.",
    "model": "The base.",
    "lora": "The adapter's method. Each has keys of its own; those of the method are below the options.",
    "task": "What is learned, and of which rows.",
    "trainer": "How it is learned.",
    "device": "Where it runs, and how precisely.",
    "tracker": "Where else the figures of a run go.",
    "experiment": "Options and values that belong together, chosen as one.",
    "hydra-launcher": "How the cells of a sweep (`peftrun -m …`) are run.",
}
Schema = dict[str, Any]
EXIT_CODES = """# Exit codes and streams

| exit code | when | what you see |
|---|---|---|
| 0 | done | results on standard output |
| 1 | the input or an artefact is at fault | a line `peftrun: KEY=VALUE: the rule; type WHAT INSTEAD` on standard error for each problem, no traceback |
| 130 | interrupted (Ctrl-C) | one line; a training goes on with `action.resume=auto` |
| 70 | a bug | a traceback |

Notes, progress and warnings go to standard error, results to standard output. Of a sweep the exit code is 1 if any cell failed; each is named with its reason, and the others are
done. Each run's folder holds `record.json`, in which `status` is `completed`, `failed` or, where the process was killed, still `running`; `error` is the reason.

From Python the same faults are exceptions below `peftrun.PeftrunError`.
"""


@cache
def texts() -> dict[str, str]:
    """Page → its Markdown."""
    groups = [group for group in ORDER if (CONF / group.replace("-", "/")).is_dir()]
    index = "# Reference\n\nMade from the files in `conf/` and their schemas. `peftrun --help` lists the same options, `peftrun --cfg job` every key.\n\n"
    index += "".join(f"- [`{_typed(group)}=`]({group}.md): {ABOUT[group]}\n" for group in groups)
    index += "- [top-level keys](config.md)\n- [exit codes and streams](exit-codes.md)\n"
    found = {"reference/index.md": index} | {f"reference/{group}.md": _group(group) for group in groups}
    return found | {"reference/config.md": _alone(), "reference/exit-codes.md": EXIT_CODES}


def _typed(group: str) -> str:
    return group.replace("-", "/")


def _group(group: str) -> str:
    schema = _schema(group)
    files = sorted((CONF / _typed(group)).glob("*.yaml"))
    heads = f"# {_typed(group)}\n\n{ABOUT[group]}\n\n" + "".join(
        f"- [`{_typed(group)}={path.stem}`](#{path.stem}): {_about(path)}\n" for path in files
    )
    owners = _owners(schema) if group != "experiment" else {}
    per_option = "".join(_option(group, path, owners, schema) for path in files)
    shared = "" if group == "experiment" else _keys_of_methods(group, owners, schema) if group == "lora" else ""
    shared += _table("Keys", _typed(group), schema, schema) if not owners and group != "experiment" else ""
    return f"{heads}\n{per_option}{shared}"


def _option(group: str, path: Path, owners: dict[str, Schema], schema: Schema) -> str:
    commands = "\n".join(part.split(": ", 1)[1] if not part.startswith("peftrun") else part for part in _commands(path))
    text = f"## {_typed(group)}={path.stem} {{#{path.stem}}}\n\n{_about(path)}\n\n" + (
        f"```\n{commands}\n```\n\n" if commands else ""
    )
    if group == "action":
        return text + _table("", "action", owners.get(path.stem, {}), schema)
    return text + (_values(group, path) if group != "trainer" or path.stem != "default" else "")


def _keys_of_methods(group: str, owners: dict[str, Schema], schema: Schema) -> str:
    return "".join(
        _table(f"Keys of method {name} {{#keys-{name}}}", group, owner, schema) for name, owner in owners.items()
    )


def _values(group: str, path: Path) -> str:
    """What an option sets, as its file says it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("# yaml-language-server")).split("\n")
    kept = [line for line in body if not re.match(r"# (@package|peftrun )", line)][1:]
    method = yaml.safe_load("\n".join(kept)) or {}
    more = (
        f"Keys: [of method {method['method']}](#keys-{method['method']}).\n\n"
        if group == "lora" and "method" in method
        else ""
    )
    text = "\n".join(kept).strip()
    return f"{more}```yaml\n{text}\n```\n\n" if text else more


def _about(path: Path) -> str:
    comments = (line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return _plain(next(line for line in comments if not line.startswith("@package")))


def _commands(path: Path) -> list[str]:
    line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# peftrun ")), "# ")
    return [part.strip() for part in line[2:].split("   |   ") if part.strip()]


def _alone() -> str:
    schema = _schema("experiment")
    groups = {group for group in ORDER} | {"defaults", "hydra"}
    alone = {name: one for name, one in schema["properties"].items() if name not in groups}
    return "# Top-level keys\n\n" + _table("", "", {"properties": alone}, schema)


@cache
def _schema(group: str) -> Schema:
    path = CONF / ".schemas" / f"{group}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"properties": {}}


def _owners(schema: Schema) -> dict[str, Schema]:
    """Value of the tag → the schema of its mapping, where a group holds several kinds."""
    found = {}
    for case in schema.get("then", {}).get("allOf", []):
        tagged = case["if"]["anyOf"][0]["properties"]
        (name,) = next(iter(tagged.values()))["enum"]
        found[name] = _resolved(case["then"], schema)
    return found


def _table(title: str, prefix: str, owner: Schema, schema: Schema) -> str:
    rows = "".join(_rows(prefix, owner, schema))
    head = f"## {title}\n\n" if title else ""
    return f"{head}| key | takes | default | |\n|---|---|---|---|\n{rows}\n" if rows else head and f"{head}None.\n\n"


def _rows(prefix: str, owner: Schema, schema: Schema) -> list[str]:
    rows = []
    for name, one in owner.get("properties", {}).items():
        if name in ("defaults", "name" if prefix == "action" else "method"):
            continue
        key, held = f"{prefix}.{name}".lstrip("."), _resolved(one, schema)
        default = f"`{json.dumps(held['default'], ensure_ascii=False)}`" if "default" in held else ""
        rows.append(f"| `{key}` | {_takes(held, schema)} | {default} | {_plain(held.get('description') or '')} |\n")
        rows += [row for inner in _inner(held, schema) for row in _rows(key, inner, schema)]
    return rows


def _inner(held: Schema, schema: Schema) -> list[Schema]:
    """Mappings with keys of their own that a key holds."""
    parts = [_resolved(one, schema) for one in (held, *held.get("allOf", []), *held.get("anyOf", []))]
    return [one for one in parts if one.get("properties")][:1]


def _takes(held: Schema, schema: Schema) -> str:
    parts = [_resolved(one, schema) for one in held.get("anyOf") or held.get("allOf") or [held]]
    words = [text for one in parts if not one.get("pattern", "").startswith(r"^(\$") and (text := _kind(one, schema))]
    return ", ".join(dict.fromkeys(words)).replace("|", "\\|") or "anything"


def _kind(one: Schema, schema: Schema) -> str:
    if "enum" in one:
        return ", ".join(f"`{word}`" for word in one["enum"])
    if "anyOf" in one:
        return _takes(one, schema)
    kind = one.get("type", "")
    if kind == "array":
        return f"a list of {_takes(one['items'], schema)}" if one.get("items") else "a list"
    name = {
        "string": "text",
        "integer": "an integer",
        "number": "a number",
        "boolean": "`true`, `false`",
        "null": "`null`",
        "object": "a mapping",
    }
    return f"{name.get(kind, kind)}{_range(one)}"


def _range(one: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {one[word]}" for word, sign in signs.items() if word in one]
    return f" {', '.join(limits)}" if limits else ""


def _resolved(one: Schema, schema: Schema) -> Schema:
    while "$ref" in one:
        one = schema["definitions"][one["$ref"].rsplit("/", 1)[1]]
    return one


def _plain(text: str) -> str:
    """A text that stands in a table as it is: nothing in it is taken for Markdown but code between ticks."""
    text = " ".join(text.replace("|", "\\|").split())
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") and len(part) > 1 else re.sub(r"([\[\]<>*_{}])", r"\\\1", part) for part in parts
    )

"""Import rules, name identity and size limits, read from the syntax tree."""

import ast
import statistics
from itertools import pairwise
from pathlib import Path

from cases import cases

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peftrun"
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "trl", "safetensors", "huggingface_hub"}
LIGHT = {
    "__init__", "__main__", "action_checks", "action_specs", "adapter_origin", "addresses", "asked", "adapter_folder", "adapter_rules", "adapter_tensors", "adapter_weights", "allocator", "api", "artifacts", "base_files", "checks", "cli", "command_checks", "composition", "config", "console",
    "device_checks", "dispatch", "early_checks", "errors", "exhaustion", "fields", "flags", "heads", "help", "jobs", "launch", "method_checks", "migrations", "methods", "objectives", "other_methods", "paths", "packages", "peer_keys", "peft_fields", "places", "preference_checks", "prompts", "result", "safetensors_file", "schema", "serve_checks", "shell_words", "task_checks", "tracker_checks", "tracker_specs", "tracking", "typed", "unknown_keys", "update_methods", "versions", "worker",
}  # fmt: skip
FOLDERS = {
    "sweep",
    "explain",
    "replay",
    "shell",
    "team",
    "report",
    "catalogue",
    "export",
    "trackers",
    "system",
}  # every module of these is light
# Each module may import those of an earlier row, not of a later one.
ORDER = [
    {
        "adapter_rules",
        "addresses",
        "allocator",
        "errors",
        "migrations",
        "packages",
        "paths",
        "peer_keys",
        "result",
        "versions",
    },
    {"methods", "places", "typed", "unknown_keys"},
    {"action_specs", "objectives", "other_methods", "peft_fields", "shell_words", "tracker_specs", "update_methods"},
    {"artifacts", "schema", "safetensors_file"},
    {"adapter_folder", "base_files", "console", "exhaustion", "fields", "launch", "prompts"},
    {"adapter_weights", "heads"},
    {
        "action_checks",
        "adapter_tensors",
        "device_checks",
        "method_checks",
        "preference_checks",
        "serve_checks",
        "tracker_checks",
    },
    {"task_checks"},
    {"early_checks"},
    {"checks"},
    {"config"},
    {"tracking"},
    {"adapter_origin", "command_checks"},
    {"asked", "composition", "dispatch", "flags", "help"},
    {"api", "jobs", "worker"},
    {"cli"},
]
ONLY_IN = {
    "peft": ("adapter/", "merge/", "editor/"),
    "omegaconf": ("config.py", "adapter_origin.py", "composition.py", "jobs.py", "sweep/", "explain/", "team/"),
    "hydra": ("jobs.py", "flags.py", "composition.py", "sweep/", "explain/", "team/"),
    "trl": ("training/", "editor/"),
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a tree imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path: Path) -> set[str]:
    """What is imported when the module is: statements outside functions."""
    body = ast.parse(path.read_text()).body
    return set().union(
        *(imported(node) for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)), set()
    )


def own(names: set[str]) -> set[str]:
    """First part of each imported module of the package: `peftrun.adapter.load` → adapter."""
    return {parts[1] for item in names if (parts := item.split("."))[0] == "peftrun" and len(parts) > 1}


def test_there_are_modules_to_look_at():
    assert len(files()) > 30


@cases("module", sorted(LIGHT))
def test_light_modules_import_nothing_heavy(module):
    path = PACKAGE / f"{module}.py"
    names = top_level(path)
    assert not {item.split(".")[0] for item in names} & HEAVY
    assert own(names) <= LIGHT | FOLDERS


@cases("path", [path for path in files() if path.parent.name in FOLDERS], ids=name)
def test_modules_of_light_folders_are_light_and_what_they_import_is(path):
    names = top_level(path)
    assert not {item.split(".")[0] for item in names} & HEAVY
    assert own(names) <= LIGHT | FOLDERS
    # The cells of a sweep know nothing of those who run them; the plan knows nothing of Hydra's launchers.
    if path.parent.name == "sweep" and path.stem != "launcher":
        assert "peftrun.sweep.launcher" not in imported(ast.parse(path.read_text()))


def test_light_modules_are_those_outside_the_heavy_ones():
    heavy = {
        "determinism",
        "base_tokenizer",
        "device",
        "memory_check",
        "placement",
        "model",
        "fingerprint",
        "gguf",
        "hush",
        "quantize",
        "warm",
    }
    assert {path.stem for path in PACKAGE.glob("*.py")} == LIGHT | heavy


def test_light_modules_import_in_one_direction():
    rank = {module: level for level, row in enumerate(ORDER) for module in row}
    for module, level in rank.items():
        later = {item for item in own(top_level(PACKAGE / f"{module}.py")) if rank.get(item, -1) > level}
        assert not later, f"{module} imports {later}, which come after it"


def test_libraries_never_import_actions_and_actions_never_each_other():
    for path in files():
        if path.stem not in ("__init__",):
            assert "actions" not in own(imported(ast.parse(path.read_text()))), name(path)


def test_libraries_take_their_own_branch_of_the_config():
    allowed = {
        "actions",
        "training",
        "sweep",
        "explain",
        "replay",
        "team",
    }  # these compare whole configs, or are made of them
    for path in files():
        part = name(path).split("/")[0]
        if ("/" in name(path) and part not in allowed) or path.stem in (
            "device",
            "model",
            "fingerprint",
            "gguf",
            "hush",
            "quantize",
        ):
            assert "peftrun.schema.RunSpec" not in imported(ast.parse(path.read_text())), name(path)


@cases("library", sorted(ONLY_IN))
def test_each_library_has_one_home(library):
    for path in files():
        if library in {item.split(".")[0] for item in imported(ast.parse(path.read_text()))}:
            assert name(path).startswith(ONLY_IN[library]), f"{name(path)} imports {library}"


def test_nothing_is_instantiated_from_a_config():
    for path in files():
        assert "hydra.utils" not in path.read_text()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text()


def test_an_action_has_one_name_everywhere():
    def stems(folder: str, pattern: str) -> set[str]:
        return {path.stem.removeprefix("test_") for path in (ROOT / folder).glob(pattern)} - {"__init__"}

    conf = stems("conf/action", "*.yaml")
    assert conf == stems("peftrun/actions", "*.py") == stems("tests/actions", "test_*.py")
    assert conf == {
        "train",
        "save",
        "reload",
        "evaluate",
        "generate",
        "merge",
        "unmerge",
        "combine",
        "extract",
        "inspect",
        "diff",
        "plan",
        "preview",
        "replay",
        "explain",
        "template",
        "check",
        "list",
        "compare",
        "browse",
        "serve",
        "export",
    }


def test_files_and_functions_are_small():
    lengths = []
    for path in files():
        text = path.read_text()
        assert text.count("\n") <= 300, f"{name(path)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.body[0].lineno + 1
                assert size <= 50, f"{name(path)} {node.name} has {size} lines"
                lengths.append(size)
    assert statistics.median(lengths) <= 8


def test_public_functions_and_classes_say_what_comes_out():
    for path in files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name(path)} {node.name}"


def test_every_yaml_says_what_it_is_and_the_command_to_type():
    found = sorted((ROOT / "conf").rglob("*.yaml"))
    assert len(found) > 25
    for path in found:
        lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
        assert lines[0].startswith("# ") and lines[0].endswith((".", ").")), path
        assert lines[1].startswith("# peftrun "), path


def test_the_order_of_light_modules_is_complete():
    assert set().union(*ORDER) == LIGHT - {"__init__", "__main__"}
    assert all(one.isdisjoint(other) for one, other in pairwise(ORDER))

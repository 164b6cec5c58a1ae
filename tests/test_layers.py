"""Import rules, name identity and size limits, read from the syntax tree."""

import ast
import re
import statistics
import sys
from collections.abc import Container
from pathlib import Path
from typing import get_args, get_type_hints

from peftrun.config.schema import actions

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peftrun"
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "trl", "safetensors", "huggingface_hub"}
# The packages and loose modules in order: each imports only those above it, wherever in a file. The second column says whether it
# comes without torch: importing a light one imports nothing of HEAVY, also not through others.
ORDER = [
    ("errors", "light", "the faults of a user, and how they are raised"),
    ("result", "light", "what an action returns"),
    ("formatting", "light", "numbers, times, sizes, values and tables as text"),
    ("compat", "mixed", "what libraries keep private and peftrun needs, a module a library"),
    ("console", "light", "what is printed while something runs"),
    ("io", "mixed", "atomic files; safetensors headers and streams"),
    ("system", "mixed", "determinism, environment, processes, memory, versions"),
    ("config", "light", "values of a configuration: schema, files, migrations, search path"),
    ("artifacts", "mixed", "what is on disk: adapter and run folders, base models, fingerprints"),
    ("data", "light", "rows as they are stored: files, packages, the Hub"),
    ("checks", "light", "every rule that refuses a configuration"),
    ("composition", "light", "what was typed → a checked RunSpec"),
    ("config_tools", "light", "explain, lint, scaffold, JSON schema"),
    ("planning", "light", "estimates of memory, time and parameters"),
    ("models", "mixed", "base models: load, quantize, cache, device"),
    ("adapters", "heavy", "everything that imports PEFT: attach, load, save, route, combine, merge, joint"),
    ("tasks", "mixed", "rows, tokens, metrics"),
    ("trackers", "light", "experiment trackers"),
    ("training", "heavy", "one run; joint/: many cells on one base model"),
    ("export", "light", "for the Hub, vLLM, llama.cpp"),
    ("results", "light", "what people read: pages and tables of runs (report, catalog, replay) and of rows (preview)"),
    ("runs", "light", "one spec in its folder; torchrun"),
    ("sweep", "light", "cells, groups, clusters, report"),
    ("serving", "heavy", "the HTTP server"),
    ("actions", "mixed", "one file an action, loaded by name"),
    ("cli", "light", "the Hydra application, help, completion"),
    ("api", "light", "load and run from Python"),
    ("__main__", "light", "python -m peftrun"),
    ("__init__", "light", "the names of the package"),
]
RANK = {name: rank for rank, (name, *_) in enumerate(ORDER)}
MAKES_SCHEMAS = "config_tools/json_schema/"  # from the docstrings of PEFT and TRL, which it imports; nothing imports it
ONLY_IN = {
    "peft": ("compat/", "adapters/", "config_tools/json_schema/"),
    "omegaconf": ("compat/", "config/", "composition/", "config_tools/", "sweep/", "cli/"),
    "hydra": ("compat/", "config/", "composition/", "config_tools/", "sweep/", "cli/"),
    "trl": ("compat/", "training/", "config_tools/json_schema/"),
}
PRIVATE = re.compile(r"_[A-Za-z]\w*")
HYDRAS_KEYS = {"_target_", "_self_"}
# What a library keeps private is used in compat/, and elsewhere in these files alone:
EXCEPTIONS = {
    "config/usage.py": {"_getframe"},  # of sys
    "training/joint/cell_trainer.py": {"_save_checkpoint"},  # of Trainer, which CellTrainer is
    "system/determinism.py": {  # torch's documented switches are attributes of its modules
        "torch.backends.cudnn.allow_tf32",
        "torch.backends.cudnn.benchmark",
        "torch.backends.cudnn.deterministic",
        "torch.utils.deterministic.fill_uninitialized_memory",
    },
}
# Subclasses of a library's class with private methods:
PRIVATE_METHODS = {
    "adapters/joint/rng_streams.py": "their own",
    "serving/kv_cache.py": "its own",
    "training/callbacks.py": "its own",
    "training/completion_loss.py": "its own",
    "training/joint/cell_trainer.py": "overrides Trainer's steps that log, save and load: one cell among many",
    "training/pretokenized.py": "overrides the methods in which TRL's trainers would tokenize",
}

# Module-level variables that change, and why each is one of the process, not of a run:
STATE = {
    "config/search_path/plugin.py": "Hydra builds the plugin itself, at each composition",
    "config/values.py": "lines that are printed once in a process",
    "console.py": "there is one standard error",
    "data/columns.py": "a cache by file and its time",
    "io/safetensors_stream.py": "buffers that are used again",
    "models/base_cache.py": "one base model in memory for several runs, within a block",
    "sweep/launcher.py": "Hydra builds the launcher itself, and drops its errors",
    "system/determinism.py": "torch's switches and warnings are those of the process; a run resets them",
    "system/malloc.py": "the allocator is that of the process",
    "training/uploads.py": "run folder → its uploads, which many cells have at a time",
    "trackers/__init__.py": "run folder → open session: many cells log at a time",
    "trackers/trackio.py": "Trackio has one folder for a process",
}
CHANGES = {"append", "add", "update", "clear", "pop", "remove", "discard", "extend", "insert", "setdefault"}


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


def package_of(dotted: str) -> str:
    """Package or loose module of a dotted name: `peftrun.adapters.load` → adapters."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"


def test_packages_import_only_those_above_them():
    for path in files():
        own = name(path).split("/")[0].removesuffix(".py")
        for dotted in imported(ast.parse(path.read_text())):
            if dotted.split(".")[0] == "peftrun" and (other := package_of(dotted)) != own:
                assert RANK[other] < RANK[own], f"{name(path)} imports {dotted}, which comes after {own}"


def modules_of(dotted: str, known: Container[str]) -> list[str]:
    """The modules that `from A import B` imports: A, its packages, and B where that is one."""
    parts = dotted.split(".")
    heads = [".".join(parts[: size + 1]) for size in range(len(parts))]
    return [head for head in heads if head in known]


def heavy_reach() -> dict[str, list[str]]:
    """Module → how it comes to something heavy when it is imported; modules that do not are left out."""
    known = {f"peftrun.{name(path)[:-3].replace('/', '.')}".removesuffix(".__init__"): path for path in files()}
    imports = {module: top_level(path) for module, path in known.items()}
    reach = {
        module: [heavy]
        for module, names in imports.items()
        if (heavy := next((item for item in names if item.split(".")[0] in HEAVY), None))
    }
    while True:
        further = {
            module: [other, *reach[other]]
            for module, names in imports.items()
            if module not in reach
            for item in names
            for other in modules_of(item, known)
            if other in reach
        }
        if not further:
            return reach
        reach |= further


def test_light_packages_import_nothing_heavy():
    light = {package for package, weight, _ in ORDER if weight == "light"}
    reach = heavy_reach()
    assert "peftrun.adapters.load" in reach
    for module, way in reach.items():
        path = module.removeprefix("peftrun.").replace(".", "/") + ".py"
        if package_of(module) in light and not path.startswith(MAKES_SCHEMAS):
            raise AssertionError(f"{module} imports {' → '.join(way)}")


def test_the_table_of_packages_is_complete_and_stands_in_the_documentation():
    here = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()} - {"__pycache__", "conf"}
    assert here == set(RANK)
    loose = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(loose) <= 8
    rows = [f"| `{package}` | {what} | {weight} |" for package, weight, what in ORDER]
    assert "\n".join(rows) in (ROOT / "docs" / "architecture.md").read_text(), "\n".join(rows)


def test_actions_are_loaded_by_name_and_import_never_each_other():
    for path in files():
        names = imported(ast.parse(path.read_text()))
        assert not any(package_of(item) == "actions" for item in names if item.startswith("peftrun.")), name(path)


def test_libraries_take_their_own_branch_of_the_config():
    for path in files():
        if name(path).split("/")[0] in ("adapters", "tasks", "export", "serving"):
            assert "peftrun.config.schema.run.RunSpec" not in imported(ast.parse(path.read_text())), name(path)


def test_each_library_has_its_places():
    for path in files():
        libraries = {item.split(".")[0] for item in imported(ast.parse(path.read_text()))}
        for library, places in ONLY_IN.items():
            assert library not in libraries or name(path).startswith(places), f"{name(path)} imports {library}"


def is_private(text: str) -> bool:
    return bool(PRIVATE.fullmatch(text)) and text not in HYDRAS_KEYS


def uses_and_patches(tree: ast.Module) -> set[str]:
    """Private names that a file uses without defining them, and attributes of imported libraries that it sets."""
    used, own, libraries = set(), set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                parts = {part for dotted in imported(node) for part in dotted.split(".")}
                used |= parts
                if not parts & {"peftrun", *sys.stdlib_module_names}:
                    libraries |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            case ast.Attribute(value=ast.Name("self"), ctx=ast.Store()):
                own.add(node.attr)
            case ast.Attribute():
                used.add(node.attr)
            case ast.FunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.AnnAssign(target=ast.Name()):
                own.add(node.target.id)
            case ast.keyword(arg=str()):
                used.add(node.arg)
            case ast.Call(func=ast.Name("getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(), *_]):
                used.add(str(node.args[1].value))
    stored = (
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)
    )
    patched = {
        text for text in stored if text.split(".")[0] in libraries and "(" not in text
    }  # not of what a call returns
    return {text for text in used - own if is_private(text)} | patched


def extends_privately(tree: ast.Module) -> bool:
    """Whether a class whose base is imported from a library has private methods."""
    bases = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and not {"peftrun", *sys.stdlib_module_names} & {str(node.module).split(".")[0]}
        for alias in node.names
    } | {"torch.nn.Module"}
    return any(
        is_private(inner.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and bases & {ast.unparse(base) for base in node.bases}
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    )


def test_what_libraries_keep_private_stands_in_compat():
    page = (ROOT / "docs" / "architecture.md").read_text()
    extending = set()
    for path in files():
        tree, own = ast.parse(path.read_text()), name(path)
        if own.startswith("compat/"):
            assert (
                own == "compat/__init__.py"
                or f"| `{path.stem}` | {ast.get_docstring(tree).split(': ', 1)[0]} |" in page
            ), own
            continue
        assert uses_and_patches(tree) == EXCEPTIONS.get(own, set()), own
        extending |= {own} if extends_privately(tree) else set()
    assert extending == PRIVATE_METHODS.keys()


def module_state(tree: ast.Module) -> set[str]:
    """Names of module-level variables that the module changes, or that hold an object of a class of its own that is not frozen."""
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.decorator_list}
    state = {item for node in ast.walk(tree) if isinstance(node, ast.Global) for item in node.names}
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found = {
                ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            }
            names |= found
            if (
                isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) in own
                and not node.value.args + node.value.keywords
            ):
                state |= found
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(held), attr=method) if method in CHANGES:
                state |= {held} & names
            case ast.Subscript(value=ast.Name(held), ctx=ast.Store() | ast.Del()):
                state |= {held} & names
    return state


def test_no_run_leaves_anything_in_a_module():
    found = {name(path): module_state(ast.parse(path.read_text())) for path in files()}
    assert {own: names for own, names in found.items() if names}.keys() == STATE.keys(), found


def test_nothing_is_instantiated_from_a_config():
    for path in files():
        assert "hydra.utils" not in path.read_text()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text()


def test_an_action_has_one_name_everywhere():
    def stems(folder: str, pattern: str) -> set[str]:
        return {path.stem.removeprefix("test_") for path in (ROOT / folder).glob(pattern)} - {"__init__"}

    classes = [get_type_hints(kind)["name"] for kind in get_args(get_args(actions.Action)[0])]
    commands = (ROOT / "docs/commands.md").read_text() + "action=train"  # the default, which no command names
    places = {
        "conf/action/{}.yaml": stems("conf/action", "*.yaml"),
        "peftrun/actions/{}.py": stems("peftrun/actions", "*.py"),
        "tests/actions/test_{}.py": stems("tests/actions", "test_*.py"),
        "{} in Action, peftrun/config/schema/actions.py": {get_args(kind)[0] for kind in classes},
        "action={} in docs/commands.md": set(re.findall(r"action=([a-z_]+)", commands)),
    }
    names = set().union(*places.values())
    missing = [place.format(one) for place, found in places.items() for one in sorted(names - found)]
    assert not missing, f"there is no {', no '.join(missing)}"


def test_a_task_type_is_known_everywhere():
    """Where every task type must be named. What only some types have (a head, joint training) names those itself."""
    types = {path.stem for path in (PACKAGE / "tasks/rows").glob("*.py") if "def load_rows" in path.read_text()}
    assert {"causal_lm", "seq_cls", "prompt_only"} <= types
    files = (
        "peftrun/config/schema/run.py",
        "peftrun/tasks/row_view.py",
        "peftrun/checks/metric_names.py",
        "tests/actions/test_replay.py",
        "docs/data.md",
    )
    texts = {file: (ROOT / file).read_text() for file in files}
    missing = [
        f"{one} in {file}"
        for one in sorted(types)
        for file, text in texts.items()
        if not re.search(f'["`]{one}["`]', text)
    ]
    missing += [f"peftrun/tasks/{one}.py" for one in sorted(types) if not (PACKAGE / f"tasks/{one}.py").is_file()]
    assert not missing, f"there is no {', no '.join(missing)}"


def test_files_and_functions_are_small():
    lengths = []
    for path in files():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{name(path)} has {text.count(chr(10))} lines"
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

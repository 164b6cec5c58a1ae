"""How the code is built, in figures: `python tests/structure.py`."""

import ast
import io
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "peftrun"
VERBS = {
    "accept", "acquire", "adapt", "add", "adjust", "advise", "align", "allocate", "allow", "answer", "append",
    "apply", "approve", "ask", "assert", "assign", "attach", "average", "back", "balance", "begin", "bind",
    "bound", "break", "bring", "broadcast", "build", "bump", "cache", "call", "can", "cancel", "cap", "carry",
    "cast", "change", "check", "choose", "chop", "clamp", "classify", "clean", "clear", "clip", "clone",
    "close", "collapse", "collate", "collect", "combine", "commit", "compare", "compile", "compose", "compress",
    "compute", "concatenate", "confirm", "connect", "consume", "contain", "contend", "continue", "convert",
    "copy", "count", "cover", "create", "crop", "cut", "deal", "decide", "declare", "decode", "dedupe",
    "deduplicate", "define", "delete", "deliver", "dequantize", "derive", "describe", "detach", "detect",
    "determine", "diff", "discard", "dispatch", "display", "divide", "does", "download", "drain", "draw",
    "drive", "drop", "dump", "emit", "empty", "enable", "encode", "end", "enforce", "enqueue", "ensure",
    "enter", "entry", "escape", "estimate", "evaluate", "evict", "exceed", "exclude", "execute", "exit",
    "expand", "expect", "explain", "export", "extend", "extract", "fail", "fall", "feed", "fetch", "fill",
    "filter", "find", "finish", "fit", "fix", "flatten", "flush", "fold", "follow", "force", "forget", "fork",
    "format", "forward", "free", "freeze", "fuse", "gather", "generate", "get", "give", "go", "grab", "group",
    "grow", "guard", "guess", "handle", "has", "hash", "hide", "hold", "hook", "identify", "ignore", "import",
    "include", "index", "infer", "init", "initialize", "inject", "inline", "insert", "inspect", "install",
    "interpolate", "interpret", "interrupt", "invert", "invoke", "is", "iterate", "join", "judge", "keep",
    "kill", "label", "launch", "lay", "lead", "leave", "let", "lex", "link", "lint", "list", "listen", "load",
    "locate", "lock", "log", "look", "loop", "lower", "make", "map", "mark", "mask", "match", "may", "mean",
    "measure", "merge", "migrate", "mix", "mount", "move", "multiply", "must", "name", "need", "needs",
    "normalize", "note", "notify", "number", "observe", "offer", "offload", "open", "order", "overlap",
    "overlay", "override", "pack", "pad", "parse", "partition", "pass", "patch", "pause", "peek", "perform",
    "permute", "pick", "pin", "place", "plan", "plot", "poll", "pop", "predict", "prefer", "prefix", "prepare",
    "present", "preserve", "print", "probe", "proceed", "process", "produce", "project", "promote", "propose",
    "protect", "prove", "provide", "prune", "publish", "pull", "push", "put", "quantize", "query", "quote",
    "raise", "rank", "rate", "reach", "read", "rebuild", "receive", "recognize", "record", "recover",
    "redirect", "reduce", "refer", "refresh", "refuse", "register", "reject", "relate", "release", "reload",
    "remember", "remove", "rename", "render", "reorder", "repeat", "replace", "replay", "report", "represent",
    "request", "require", "rerun", "reset", "reshape", "resolve", "restart", "restore", "restrict", "resume",
    "retain", "retry", "return", "reuse", "reverse", "revert", "rewrite", "rotate", "round", "route", "run",
    "sample", "save", "scale", "scan", "schedule", "score", "search", "see", "seek", "select", "send",
    "separate", "serialize", "serve", "set", "settle", "shape", "share", "shift", "shorten", "shorthand",
    "should", "show", "shrink", "shuffle", "shut", "sign", "skip", "slice", "snapshot", "sort", "spawn",
    "spell", "split", "spread", "stack", "stamp", "start", "state", "stay", "stop", "store", "stream", "strip",
    "submit", "subtract", "suggest", "sum", "summarize", "supply", "support", "suppress", "swap", "switch",
    "sync", "take", "tally", "test", "tie", "time", "tokenize", "total", "touch", "trace", "track", "train",
    "transform", "translate", "transpose", "trim", "truncate", "try", "tune", "turn", "unload", "unpack",
    "unpin", "unquote", "unregister", "unroll", "unwrap", "update", "upgrade", "upload", "use", "uses",
    "validate", "verify", "view", "visit", "wait", "walk", "warm", "warn", "watch", "weigh", "widen", "wrap",
    "write", "yield", "zero",
}  # fmt: skip


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            yield node


def words(name: str) -> list[str]:
    return name.strip("_").split("_")


def share(part: int, whole: int) -> float:
    return round(100 * part / whole, 1)


def used_once(text: dict[Path, ast.Module]) -> float:
    """Percent of private functions of modules and classes that their module names in one place."""
    once = private = 0
    for tree in text.values():
        uses = Counter(
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Name | ast.Attribute)
        )
        for function in functions(tree):
            if function.name.startswith("_"):
                private, once = private + 1, once + (uses[function.name] == 1)
    return share(once, private)


def figures() -> dict[str, float]:
    """Name → figure; shares in percent."""
    text = trees()
    found = [function for tree in text.values() for function in functions(tree)]
    lengths = sorted((one.end_lineno or 0) - one.body[0].lineno + 1 for one in found)
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in text)
    comments = sum(
        token.type == tokenize.COMMENT
        for path in text
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    )
    return {
        "files": len(text),
        "lines": lines,
        "loose modules": len(list(PACKAGE.glob("*.py"))),
        "functions": len(found),
        "one-word functions %": share(sum(len(words(one.name)) == 1 for one in found), len(found)),
        "verb first %": share(sum(words(one.name)[0] in VERBS for one in found), len(found)),
        "private functions used once %": used_once(text),
        "comments per 100 lines": round(100 * comments / lines, 2),
        "median lines of a function": statistics.median(lengths),
        "p90 lines of a function": lengths[int(0.9 * len(lengths))],
        "longest function": lengths[-1],
    }


if __name__ == "__main__":
    for key, value in figures().items():
        print(f"{key:32} {value}")

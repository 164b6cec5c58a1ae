"""Suggestions for a folder or file that was typed under a key that the action does not have, or without a key. Light."""

from peftrun.checks.peer_keys import SUFFIXES, fill_value

PLACES = (  # keys under which other programs take a folder or file
    "path", "paths", "dir", "dirs", "folder", "folders", "directory", "root", "run", "runs", "roots", "file", "input", "input_dir",
)  # fmt: skip
ROWS = "task.data.path=VALUE"
OF_FOLDERS = {  # what to type → the actions that take a folder this way
    "dirs=[VALUE]": "list browse",
    "'runs=[VALUE, outputs/train/RUN2]'": "compare",
    "run=VALUE": "replay explain",
    "adapter=VALUE": "reload merge unmerge inspect evaluate generate serve export save",
    "'adapter={a: VALUE, b: outputs/train/RUN2}'": "combine diff",
    "finetuned_model=VALUE": "extract",
    "path=VALUE": "template",
    "from=VALUE": "import",
    ROWS: "train plan preview",
}
OF_FILES = {"generate": "prompts_file=VALUE"}


def place(action: str, name: str, value: str) -> str | None:
    """What to type for a folder or file of this action; None: `name` is not in `PLACES`, or the action takes no such thing."""
    # `run` and `root` name folders of runs, which the actions that read rows do not take.
    if name not in PLACES or (action in OF_FOLDERS[ROWS].split() and name.startswith(("run", "root"))):
        return None
    if value.endswith(SUFFIXES):
        text = OF_FILES.get(action, ROWS)
    else:
        text = next((text for text, actions in OF_FOLDERS.items() if action in actions.split()), "")
    return fill_value(text, value) or None

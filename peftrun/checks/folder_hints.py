"""The folder or file that an action is to look at, typed under a name that the action does not have, or under none. Light."""

from peftrun.checks.peer_keys import SUFFIXES, filled

PLACES = (
    "path",
    "paths",
    "dir",
    "dirs",
    "folder",
    "folders",
    "directory",
    "root",
    "run",
    "runs",
    "roots",
    "file",
    "input",
    "input_dir",
)
ROWS = "task.data.path=VALUE"
OF_FOLDERS = {  # what to type → the actions that look at a folder so
    "roots=[VALUE]": "list browse",
    "'runs=[VALUE, outputs/train/RUN2]'": "compare",
    "run=VALUE": "replay explain",
    "adapter=VALUE": "reload merge unmerge inspect evaluate generate serve export save",
    "'adapter={a: VALUE, b: outputs/train/RUN2}'": "combine diff",
    "tuned=VALUE": "extract",
    "path=VALUE": "template",
    ROWS: "train plan preview",
}
OF_FILES = {"generate": "prompts_file=VALUE"}


def place(action: str, name: str, value: str) -> str | None:
    """What to type for a folder or file that an action is to look at; None: `name` is none of `PLACES`, or it looks at no such thing."""
    if name not in PLACES or (action in OF_FOLDERS[ROWS].split() and name.startswith(("run", "root"))):
        return None
    if value.endswith(SUFFIXES):
        text = OF_FILES.get(action, ROWS)
    else:
        text = next((text for text, actions in OF_FOLDERS.items() if action in actions.split()), "")
    return filled(text, value) or None

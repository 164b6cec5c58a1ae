"""Adapters on the Hub: ORG/NAME[/SUBFOLDER][@REVISION] as it is typed, and the folder of one that was downloaded. Light."""

import re
from dataclasses import dataclass
from pathlib import Path

from peftrun.artifacts import hub_cache
from peftrun.artifacts.hub_cache import DEFAULT_REVISION

PART = r"(?!\.\.?(?:[/@]|$))[\w.-]+"  # of a path, neither `.` nor `..`
SOURCE = re.compile(
    rf"(?P<org>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)(?P<subfolder>(?:/{PART})*)"
    rf"(?:@(?P<revision>{PART}(?:/{PART})*)(?:@(?P<commit>[0-9a-f]{{40}}))?)?"
)


@dataclass(frozen=True)
class HubAdapter:
    """An adapter on the Hub.

    Attributes:
        id: ORG/NAME.
        subfolder: of the repository; empty: its top.
        revision: a branch, a tag or a commit, as typed.
        commit: the one that was downloaded, as it is stored in a run's config.yaml (ORG/NAME@REVISION@COMMIT); None: not yet.
    """

    id: str
    subfolder: str
    revision: str
    commit: str | None = None

    def __str__(self) -> str:
        commit = f"@{self.commit}" if self.commit else ""
        return f"{self.place}@{self.revision}{commit}"

    @property
    def place(self) -> str:
        """ORG/NAME or ORG/NAME/SUBFOLDER."""
        return f"{self.id}/{self.subfolder}" if self.subfolder else self.id

    @property
    def typed(self) -> str:
        """What to type for it: without the commit, and without a revision where it is main and that need not be said."""
        if self.revision == DEFAULT_REVISION and parse_hub_adapter(self.place):
            return self.place
        return f"{self.place}@{self.revision}"

    def find_folder(self) -> Path | None:
        """Its folder in the local cache; None if this commit was not downloaded, or none is pinned: a branch may have moved."""
        snapshot = hub_cache.find_snapshot(self.id, self.commit) if self.commit else None
        return snapshot / self.subfolder if snapshot else None


def parse_hub_adapter(path: str) -> HubAdapter | None:
    """The adapter on the Hub that `path` names; None for a path of this machine.

    A folder of that name wins, as for a base model. So does one named ORG, unless a revision is typed: in a misspelled
    `outputs/train/RUN` nobody means the Hub.
    """
    match = SOURCE.fullmatch(path)
    if match is None or Path(path).is_dir() or (match["revision"] is None and Path(match["org"]).is_dir()):
        return None
    subfolder, revision = match["subfolder"].strip("/"), match["revision"] or DEFAULT_REVISION
    return HubAdapter(f"{match['org']}/{match['name']}", subfolder, revision, match["commit"])


def format_source(path: str) -> str:
    """An adapter's path as it is typed: without the commit of one on the Hub."""
    hub = parse_hub_adapter(path)
    return hub.typed if hub else path

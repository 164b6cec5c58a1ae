"""Repositories on the Hub: found in huggingface_hub's cache without that library, downloaded with it, or why they cannot be. Light."""

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from peftrun.errors import PeftrunError

CONNECT_TIMEOUT = 3  # seconds
DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubRepository:
    """A model repository on the Hub, and how messages name it.

    Attributes:
        id: ORG/NAME.
        revision: a branch, a tag or a commit; None: main.
        option: the override that names it.
        copy_option: what to type for a copy of it in a folder.
        fault: the error that is raised.
    """

    id: str
    revision: str | None
    option: str
    copy_option: str
    fault: type[PeftrunError]

    def find_snapshot(self) -> Path | None:
        """The folder of its files in the cache; None if this revision was never downloaded."""
        return find_snapshot(self.id, self.revision)

    def download(self, allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
        """The folder of those of its files that match `allow` and not `ignore`, in the cache; named by the commit.

        Raises: `fault`: it does not exist, may not be read, or the Hub cannot be reached and it is not in the cache.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, HTTPError
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        try:
            return Path(
                snapshot_download(
                    self.id, revision=self.revision, allow_patterns=list(allow), ignore_patterns=list(ignore) or None
                )
            )
        except HFValidationError as error:
            raise self.fault(f"{self.option}: is neither a folder nor a Hub id (ORG/NAME); type one of them") from error
        except (OSError, HTTPError) as error:
            raise self.fault(self._explain_refusal(error)) from error

    def check_reachable(self) -> None:
        """Raises: `fault`: the Hub does not answer within seconds. A name that cannot be one on the Hub is left to `download`."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.id)
        except HFValidationError:
            return
        if constants.HF_HUB_OFFLINE or not _is_reachable(constants.ENDPOINT):
            raise self.fault(self._explain_unreachable())

    def _explain_refusal(self, error: Exception) -> str:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        # snapshot_download looks into the cache after any refusal, and reports that nothing is there.
        refusal = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if isinstance(refusal, GatedRepoError):
            return (
                f"{self.option}: is gated on the Hub; accept its conditions on its page there and type `hf auth login`"
            )
        if isinstance(refusal, RepositoryNotFoundError):
            return f"{self.option}: is no folder here, and the Hub has no such repository, or a private one; check the name, or type `hf auth login`"
        if isinstance(refusal, RevisionNotFoundError):
            return (
                f"{self.option}: the Hub has no revision {self.revision} of {self.id}; name a branch, a tag or a commit"
            )
        if isinstance(refusal, LocalEntryNotFoundError):
            return self._explain_unreachable()
        reason = next(iter(str(refusal).strip().splitlines()), type(refusal).__name__)
        return f"{self.option}: the Hub refused it ({reason}); check the name, the revision and `hf auth login`"

    def _explain_unreachable(self) -> str:
        return (
            f"{self.option}: is not in the local cache, is no folder here, and the Hub cannot be reached; connect, or download it elsewhere "
            f"(`hf download {self.id} --local-dir FOLDER`) and type {self.copy_option}"
        )


def find_snapshot(repo_id: str, revision: str | None) -> Path | None:
    """The folder of a repository's files in huggingface_hub's cache, at a branch, tag or commit (None: main); None if it was never downloaded."""
    # The cache's layout is read here because importing huggingface_hub takes too long.
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub")
    repository = hub.expanduser() / f"models--{repo_id.replace('/', '--')}"
    ref = repository / "refs" / (revision or DEFAULT_REVISION)
    commit = ref.read_text(encoding="ascii").strip() if ref.is_file() else str(revision)
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _is_reachable(address: str) -> bool:
    """Whether the address accepts connections; behind a proxy this cannot be checked and counts as true."""
    from urllib.request import getproxies  # imports ssl, which a refused command does not need

    url, connected = urlsplit(address), threading.Event()
    if getproxies():
        return True

    def connect() -> None:
        with (
            suppress(OSError),
            socket.create_connection((url.hostname or "", url.port or 443), timeout=CONNECT_TIMEOUT),
        ):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a thread, since DNS lookups have no timeout
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return connected.is_set()

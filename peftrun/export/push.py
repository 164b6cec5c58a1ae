"""Pushes a folder to the Hub as one commit. Light: huggingface_hub is imported only for pushing."""

import shlex
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.errors import ArtifactError
from peftrun.export import adapter_files

COMMIT_MESSAGE = "Export by peftrun"


def push_to_hub(folder: Path, repo_id: str, private: bool) -> dict[str, Any]:
    """Pushes all files of `folder`; returns URL and id of the commit. A missing repository is created; an existing one keeps its visibility.

    Raises: ArtifactError: the Hub refused or could not be reached; the folder stays.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not console.is_terminal():
        disable_progress_bars()
    files = [CommitOperationAdd(name, str(folder / name)) for name in adapter_files.list_files(folder)]
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(repo_id, files, commit_message=COMMIT_MESSAGE)
    except Exception as error:
        # Refused: OSError, or ValueError (an invalid card, a large file). Not reached: errors of httpx, whose base
        # classes have changed between versions.
        if not isinstance(error, OSError | RuntimeError | ValueError) and not type(error).__module__.startswith(
            "httpx"
        ):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(
            f"action.repo_id={repo_id}: the Hub did not accept it ({reason}); the folder is complete: check name and token, then "
            f"type `{format_upload_command(repo_id, str(folder), private)}`"
        ) from error
    return {"repo_id": repo_id, "commit": commit.oid, "url": commit.commit_url}


def format_upload_command(repo_id: str, folder: str, private: bool) -> str:
    """The equivalent command of the Hub's client."""
    return f"hf upload {repo_id} {shlex.quote(folder)}{' --private' if private else ''}"

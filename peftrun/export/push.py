"""Sending a folder to the Hub as one commit: exactly these files. Light: huggingface_hub is imported where something is sent."""

import shlex
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.errors import ArtifactError
from peftrun.export import adapter_files

COMMIT_MESSAGE = "Export by peftrun"


def push_to_hub(folder: Path, repo_id: str, private: bool) -> dict[str, Any]:
    """What the Hub answered: address and id of the commit. The repository is made where there is none; one that is there keeps its visibility.

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
        if not _is_hub_error(error):
            raise
        raise ArtifactError(
            f"action.repo_id={repo_id}: the Hub did not take it ({_summarize_error(error)}); the folder is whole: check name and token, then "
            f"type `{format_upload_command(repo_id, str(folder), private)}`"
        ) from error
    return {"repo_id": repo_id, "commit": commit.oid, "url": commit.commit_url}


def format_upload_command(repo_id: str, folder: str, private: bool) -> str:
    """The command of the Hub's own client that does the same."""
    return f"hf upload {repo_id} {shlex.quote(folder)}{' --private' if private else ''}"


def _is_hub_error(error: Exception) -> bool:
    """Refused (OSError, ValueError: a card that is none, a large file), or not reached: errors of the HTTP library, which has changed its name."""
    return isinstance(error, OSError | RuntimeError | ValueError) or type(error).__module__.startswith("httpx")


def _summarize_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

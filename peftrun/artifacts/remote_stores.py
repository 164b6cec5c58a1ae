"""Where a training is copied to while it runs: a repository on the Hub, and a folder under a URL. Light: their clients are imported late.

Both receive a checkpoint whole or not at all: the Hub as one commit, a URL with the file last that marks a checkpoint as complete.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import hub_adapters, remote_files
from peftrun.artifacts.hub_cache import HubRepository
from peftrun.artifacts.run_layout import CHECKPOINTS, COMPLETE_MARKER, CONFIG, METRICS, RECORD
from peftrun.errors import ArtifactError, ConfigError

LAST_CHECKPOINT = "last-checkpoint"  # on the Hub: a run folder with the newest checkpoint, to resume from
NOT_SENT = (
    "training_args.bin",
    "README.md",
)  # of a checkpoint: not needed to resume, and a pickle with paths of this machine
MESSAGES = {True: "Training by peftrun", False: "Training in progress"}
ADVICE = "check its name, the token (`hf auth login`) and the connection"


def is_remote_run(resume: str) -> bool:
    """Whether a run to resume is on the Hub or under a URL."""
    return remote_files.is_url(resume) or hub_adapters.parse_hub_adapter(resume) is not None


def fetch_run(resume: str) -> Path | None:
    """A run to resume from the Hub or a URL, in the local cache; None for a run folder of this machine.

    Raises: ConfigError: it cannot be read, or holds no checkpoint to resume from.
    """
    option = f"action.resume={resume}"
    hub = hub_adapters.parse_hub_adapter(resume.removeprefix("hf://"))
    if hub and not hub.subfolder:
        repository = HubRepository(hub.id, hub.revision, option, "action.resume=FOLDER", ConfigError)
        run = repository.download([f"{LAST_CHECKPOINT}/*"]) / LAST_CHECKPOINT
        if not (run / RECORD).is_file():
            raise ConfigError(
                f"{option}: holds no {LAST_CHECKPOINT}: its training is complete, or was pushed without trainer.hub_strategy=checkpoint; "
                "name a commit that holds one, ORG/NAME@COMMIT, or omit action.resume"
            )
        return run
    if not remote_files.is_url(resume):
        return None
    names = (CONFIG, METRICS, RECORD)
    run = remote_files.fetch_folder(
        resume.rstrip("/"), option, ConfigError, lambda name: name in names or name.startswith(f"{CHECKPOINTS}/")
    )
    missing = next((name for name in (RECORD, CONFIG) if not (run / name).is_file()), None)
    if missing:
        raise ConfigError(f"{option}: is not a run folder (no {missing}); name one that action.upload_to wrote")
    return run


@dataclass(frozen=True)
class HubStore:
    """A repository on the Hub. `with_state`: checkpoints too, not only their adapters."""

    repo_id: str
    private: bool
    with_state: bool

    @property
    def option(self) -> str:
        """As messages name it."""
        return f"trainer.hub_model_id={self.repo_id}"

    def open(self, run: Path) -> None:
        """Creates the repository if it is missing. Raises: ConfigError: the Hub refuses."""
        from huggingface_hub import HfApi

        try:
            HfApi().create_repo(self.repo_id, private=self.private, exist_ok=True)
        except Exception as error:  # of the Hub, or of httpx where it cannot be reached
            raise ConfigError(
                f"{self.option}: the Hub refused it ({remote_files.explain_error(error)}); {ADVICE}"
            ) from error

    def send_checkpoint(self, staged: Path) -> None:
        """One commit: the adapter at the top, and the newest checkpoint in place of the one before."""
        self._commit(staged, last=False)

    def send_result(self, folder: Path) -> None:
        """One commit: the trained adapter with its card, in place of the last checkpoint. Raises: ArtifactError: the Hub refuses."""
        try:
            self._commit(folder, last=True)
        except Exception as error:
            reason = remote_files.explain_error(error)
            raise ArtifactError(f"{self.option}: the Hub did not accept the result ({reason})") from error

    def _commit(self, folder: Path, last: bool) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        HfApi().upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=MESSAGES[last],
            ignore_patterns=None if last or self.with_state else [f"{LAST_CHECKPOINT}/*"],
            delete_patterns=[f"{LAST_CHECKPOINT}/*"],
        )


@dataclass(frozen=True)
class UrlStore:
    """A folder under a URL, in which the run has a folder of its own name."""

    url: str

    @property
    def option(self) -> str:
        """As messages name it."""
        return f"action.upload_to={self.url}"

    def open(self, run: Path) -> None:
        """Writes the run's config and record there. Raises: ConfigError: nothing can be written, or a run of this name is there."""
        with remote_files.report_errors(self.option, ConfigError, "written"):
            storage, root = self._open_storage(run.name)
            if storage.exists(f"{root}/{RECORD}"):
                raise ConfigError(
                    f"{self.option}: holds a run {run.name} already; type hydra.run.dir=FOLDER with another name"
                )
            _put_files(storage, root, run, [file for file in run.iterdir() if file.is_file()])

    def send_checkpoint(self, staged: Path) -> None:
        """The checkpoint in the run's folder there; older ones that the run has removed are removed there too."""
        run = staged / LAST_CHECKPOINT
        storage, root = self._open_storage(staged.parent.name)
        _put_files(storage, root, run, _list_files(run))
        _remove_checkpoints(storage, root, keep=_list_checkpoints(staged.parent) | _list_checkpoints(run))

    def send_result(self, run: Path) -> None:
        """The whole run folder, its record last. Raises: ArtifactError: it cannot be written."""
        with remote_files.report_errors(self.option, ArtifactError, "written"):
            storage, root = self._open_storage(run.name)
            _put_files(storage, root, run, [file for file in _list_files(run) if not _is_hidden(file, run)])
            _remove_checkpoints(storage, root, keep=_list_checkpoints(run))

    def _open_storage(self, run_name: str) -> tuple[Any, str]:
        storage, path = remote_files.open_url(self.url)
        return storage, f"{path}/{run_name}"


Store = HubStore | UrlStore


def _list_files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_SENT]


def _is_hidden(file: Path, run: Path) -> bool:
    """Whether a file is in a folder that is being written; Hydra's folder is the only hidden one to keep."""
    return any(part.startswith(".") and part != ".hydra" for part in file.relative_to(run).parts)


def _list_checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / CHECKPOINTS).glob("checkpoint-*")}


def _put_files(storage: Any, root: str, folder: Path, files: Iterable[Path]) -> None:
    """Copies files of `folder` below `root`, the one that says that a checkpoint, or the run, is complete after the others."""
    last = {COMPLETE_MARKER: 1, RECORD: 2}
    skipped = {}
    for file in sorted(files, key=lambda file: (last.get(file.name, 0), file)):
        path = file.relative_to(folder)
        target = f"{root}/{path.as_posix()}"
        if path.parts[0] == CHECKPOINTS:  # files of a complete checkpoint do not change
            checkpoint = f"{root}/{CHECKPOINTS}/{path.parts[1]}"
            if checkpoint not in skipped:
                skipped[checkpoint] = storage.exists(f"{checkpoint}/{COMPLETE_MARKER}")
            if skipped[checkpoint]:
                continue
        storage.makedirs(os.path.dirname(target), exist_ok=True)
        storage.put_file(str(file), target)


def _remove_checkpoints(storage: Any, root: str, keep: set[str]) -> None:
    folder = f"{root}/{CHECKPOINTS}"
    storage.invalidate_cache()
    for path in storage.ls(folder, detail=False) if storage.exists(folder) else []:
        if path.rstrip("/").rpartition("/")[2] not in keep:
            if storage.exists(f"{path}/{COMPLETE_MARKER}"):
                storage.rm_file(f"{path}/{COMPLETE_MARKER}")  # first: what is left of it is then no checkpoint
            storage.rm(path, recursive=True)

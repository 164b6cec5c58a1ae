"""Copies checkpoints to the Hub and to a URL while a training goes on, in a thread of their own. Light.

An upload that fails costs a warning, and the next checkpoint is sent again: only the result at the end must arrive.
"""

import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import remote_files
from peftrun.artifacts.remote_stores import LAST_CHECKPOINT, NOT_SENT, HubStore, Store, UrlStore
from peftrun.artifacts.run_layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    RECORD,
    TRAINER_STATE,
)
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.run import RunSpec
from peftrun.io import atomic_files

_LIVE: dict[Path, "Uploads"] = {}  # run folder → its uploads


def open_stores(spec: RunSpec, out_dir: Path) -> list[Store]:
    """Where a training is copied to. A cell of a sweep has a repository of its own, named after it."""
    stores: list[Store] = []
    if hub := build_hub_store(spec, out_dir):
        stores.append(hub)
    if isinstance(spec.action, TrainAction) and spec.action.upload_to:
        stores.append(build_url_store(spec.action.upload_to, out_dir))
    return stores


def build_hub_store(spec: RunSpec, out_dir: Path) -> HubStore | None:
    """The repository that this training is pushed to, or None."""
    trainer = spec.trainer
    if not trainer.push_to_hub or spec.action.name != "train":
        return None
    suffix = f"-{out_dir.name}" if atomic_files.sweep_of(out_dir) else ""
    return HubStore(f"{trainer.hub_model_id}{suffix}", trainer.hub_private_repo, trainer.hub_strategy == "checkpoint")


def build_url_store(url: str, out_dir: Path) -> UrlStore:
    """The folder of this training's run; a cell's is in one of its sweep's name."""
    sweep = atomic_files.sweep_of(out_dir)
    return UrlStore(f"{url.rstrip('/')}/{sweep.name}" if sweep else url.rstrip("/"))


def start_uploads(spec: RunSpec, out_dir: Path) -> None:
    """Opens every place that a training is copied to. Raises: ConfigError: one cannot be written, before hours of training."""
    stores = open_stores(spec, out_dir)
    for store in stores:
        store.open(out_dir)
    if spec.trainer.push_to_hub and spec.trainer.hub_strategy == "end":
        stores = [store for store in stores if not isinstance(store, HubStore)]
    if stores:
        _LIVE[out_dir] = Uploads(out_dir, stores)


def send_checkpoint(out_dir: Path, checkpoint: Path) -> None:
    """Queues a complete checkpoint of the run in `out_dir`, if it is copied anywhere."""
    if uploads := _LIVE.get(out_dir):
        uploads.add(checkpoint)


def finish_uploads(out_dir: Path) -> None:
    """Waits until the checkpoints are sent, and says which could not be."""
    if uploads := _LIVE.pop(out_dir, None):
        uploads.finish()


class Uploads:
    """The uploads of one run: one at a time; of several checkpoints that wait, only the newest is sent."""

    def __init__(self, out_dir: Path, stores: list[Store]) -> None:
        self.out_dir, self.stores = out_dir, stores
        self.failures: dict[str, str] = {}  # option of a store → why the last upload failed
        self.reported: set[str] = set()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self.waiting: tuple[Future[None], Path] | None = None

    def add(self, checkpoint: Path) -> None:
        """Queues a checkpoint; training goes on at once."""
        try:
            staged = stage_checkpoint(self.out_dir, checkpoint)
        except OSError as error:  # such as a full disk
            console.print_warning(f"{checkpoint.name}: is not sent ({remote_files.explain_error(error)})")
            return
        if self.waiting and self.waiting[0].cancel():
            shutil.rmtree(self.waiting[1], ignore_errors=True)
        self.waiting = self.pool.submit(self._send, staged), staged

    def finish(self) -> None:
        """Waits for the last upload."""
        if self.waiting and not self.waiting[0].done():
            console.set_activity("sending the last checkpoint")
        self.pool.shutdown()
        for option, reason in self.failures.items():
            console.print_warning(f"{option}: the last checkpoint was not sent ({reason})")

    def _send(self, staged: Path) -> None:
        for store in self.stores:
            try:
                store.send_checkpoint(staged)
                self.failures.pop(store.option, None)
            except Exception as error:  # each storage's client has errors of its own
                self.failures[store.option] = reason = remote_files.explain_error(error)
                if store.option not in self.reported:
                    self.reported.add(store.option)
                    console.print_warning(
                        f"{store.option}: a checkpoint could not be sent ({reason}); the training goes on, and the next one is tried"
                    )
        shutil.rmtree(staged, ignore_errors=True)


def stage_checkpoint(out_dir: Path, checkpoint: Path) -> Path:
    """A folder with what is sent of a checkpoint: the adapter's own files, and a run folder to resume from.

    Its files are hard links, since the training may remove the checkpoint before it is sent.
    """
    staged = Path(tempfile.mkdtemp(prefix=".upload-", dir=out_dir))
    run = staged / LAST_CHECKPOINT
    for folder in {checkpoint, _find_best(checkpoint)}:
        shutil.copytree(
            folder, run / CHECKPOINTS / folder.name, ignore=shutil.ignore_patterns(*NOT_SENT), copy_function=_link
        )
    for name in (CONFIG, METRICS, RECORD):
        with suppress(FileNotFoundError):  # nothing is logged yet
            shutil.copyfile(out_dir / name, run / name)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if (checkpoint / name).is_file():
            _link(checkpoint / name, staged / name)
    return staged


def _find_best(checkpoint: Path) -> Path:
    """The best checkpoint so far, which trainer.load_best_model_at_end ends with; the checkpoint itself if there is none."""
    best = atomic_files.read_json(checkpoint / TRAINER_STATE).get("best_model_checkpoint")
    folder = checkpoint.with_name(Path(best).name) if best else checkpoint
    return folder if folder.is_dir() else checkpoint


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
    return target

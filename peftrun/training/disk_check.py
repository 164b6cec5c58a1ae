"""Whether the disk has room for what a training will write, checked before its first step."""

import math
import shutil
from typing import Any

from peftrun.errors import ArtifactError
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.training import fit
from peftrun.training.session import TrainingSession

# The optimizer's state as a multiple of the trained weights, at least; optimizers that are not listed have less than one.
OPTIMIZER_STATE_COPIES = {"adamw_torch": 2, "adamw_torch_fused": 2, "paged_adamw_32bit": 2, "lion_32bit": 1}


def check_disk_space(session: TrainingSession, model: Any) -> None:
    """Raises: ArtifactError: the run folder's disk has no room for the checkpoints and what is saved at the end."""
    trainer = session.spec.trainer
    checkpoints = 0
    if trainer.save_strategy != "no":
        steps = fit.count_steps(trainer, len(session.rows.train))
        total = math.ceil(steps / trainer.save_steps if trainer.save_strategy == "steps" else trainer.num_train_epochs)
        # One more than are kept: the oldest is deleted only once the newest is written.
        checkpoints = min(total, (trainer.save_total_limit or total) + 1)
    trained = sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad
    )
    needed = trained * (1 + checkpoints * (1 + OPTIMIZER_STATE_COPIES.get(trainer.optim, 0)))  # bytes
    free = shutil.disk_usage(session.out_dir).free
    if needed > free:
        share = f", of it {checkpoints} checkpoints at once" if checkpoints else ""
        option = "save_total_limit=1" if checkpoints > 2 else "save_strategy=no"
        advice = f"type trainer.{option}, " if checkpoints else ""
        raise ArtifactError(
            f"{session.out_dir}: its disk has {format_bytes(free)} free, and this training writes {format_bytes(needed)}{share}; "
            f"{advice}free space there, or type {atomic_files.folder_key(session.out_dir)}=FOLDER on another disk"
        )

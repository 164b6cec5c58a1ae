"""What a training will write, against what its disk has left: known before its first step."""

import math
import shutil
from typing import Any

from peftrun.config.schema.run import TrainerSpec
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files
from peftrun.training import fit
from peftrun.training.session import TrainingSession

# Copies of the trained weights that an optimiser's state is made of, at least; those that are not named keep less than one.
OPTIMIZER_STATE_COPIES = {"adamw_torch": 2, "adamw_torch_fused": 2, "paged_adamw_32bit": 2, "lion_32bit": 1}


def check_disk_space(job: TrainingSession, net: Any) -> None:
    """Raises: ArtifactError: the run folder's disk cannot hold the checkpoints and what is saved at the end."""
    trainer = job.spec.trainer
    trained = sum(one.numel() * one.element_size() for one in net.parameters() if one.requires_grad)
    kept = _count_checkpoints(trainer, fit.count_steps(trainer, len(job.rows.train)))
    need = trained * (1 + kept * (1 + OPTIMIZER_STATE_COPIES.get(trainer.optim, 0)))
    free = shutil.disk_usage(job.out_dir).free
    if need > free:
        less = f", of it {kept} checkpoints at once" if kept else ""
        advice = "type trainer.save_total_limit=1, " if kept > 2 else "type trainer.save_strategy=no, " if kept else ""
        raise ArtifactError(
            f"{job.out_dir}: its disk has {free / 1e9:.1f} GB free, and this training writes {need / 1e9:.1f} GB{less}; "
            f"{advice}free space there, or type {atomic_files.folder_key(job.out_dir)}=FOLDER on another disk"
        )


def _count_checkpoints(trainer: TrainerSpec, steps: int) -> int:
    """How many lie there at the same time: one more than are kept, while the newest is written."""
    if trainer.save_strategy == "no":
        return 0
    written = math.ceil(steps / trainer.save_steps if trainer.save_strategy == "steps" else trainer.num_train_epochs)
    return min(written, (trainer.save_total_limit or written) + 1)

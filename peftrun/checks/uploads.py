"""Rules of pushing a training to the Hub and of copying it to a URL. Light: checked before anything is loaded."""

from collections.abc import Callable, Iterator
from typing import Any

from peftrun.artifacts import remote_files
from peftrun.artifacts.portable_names import HUB_ID
from peftrun.artifacts.remote_files import WEB
from peftrun.checks.export import check_push_possible
from peftrun.config.schema.run import TrainerSpec


def check_hub(trainer: TrainerSpec, action: Any) -> Iterator[str]:
    """A training that is pushed has a repository, a token, and checkpoints if they are to be sent."""
    if not trainer.push_to_hub or action.name != "train":
        return
    repo = trainer.hub_model_id
    if repo is None:
        yield "trainer.hub_model_id is not set; trainer.push_to_hub=true needs it: type trainer.hub_model_id=ORG/NAME"
    elif not HUB_ID.fullmatch(repo):
        yield f"trainer.hub_model_id={repo}: must be an id on the Hub; type trainer.hub_model_id=ORG/NAME"
    if trainer.hub_strategy == "checkpoint" and trainer.save_strategy == "no":
        yield "trainer.hub_strategy=checkpoint: sends checkpoints, and trainer.save_strategy=no writes none; type trainer.hub_strategy=end"
    yield from check_push_possible("trainer.push_to_hub=true")


def check_upload(action: Any) -> Iterator[str]:
    """A training is copied to a URL that can be written."""
    url = getattr(action, "upload_to", None)
    if url is None or action.name != "train":
        return
    option = f"action.upload_to={url}"
    if not remote_files.is_url(url):
        yield f"{option}: is no URL; type action.upload_to=s3://BUCKET/FOLDER, or file:///FOLDER for a folder of this machine"
    elif url.partition("://")[0] in WEB:
        yield f"{option}: can only be read; type action.upload_to=s3://BUCKET/FOLDER, or gs://BUCKET/FOLDER"
    elif problem := remote_files.explain_unusable(url):
        yield f"{option}: {problem}"


RULES: list[tuple[tuple[str, ...], Callable[..., Iterator[str]]]] = [
    (("trainer", "action"), check_hub),
    (("action",), check_upload),
]

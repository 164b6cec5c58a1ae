"""What a training starts from: a fresh adapter on the base model, or the adapter of an earlier run."""

from contextlib import AbstractContextManager
from typing import Any

from peftrun import console
from peftrun.adapters import attach, parent, reference, stack
from peftrun.config.schema.actions import TrainAction
from peftrun.training import session as training_session
from peftrun.training.session import TrainingSession


def start_adapter(session: TrainingSession) -> tuple[Any, dict[str, float]]:
    """The PEFT model to train, and the metrics before training: of the base model, or of the adapter that is continued.

    Raises: PeftrunError: see `attach_adapter`.
    """
    if session.parent is None:
        before = evaluate_before(session, session.base.model)
        return attach_adapter(session), before
    adapted = attach_adapter(session)
    with use_reference(session, adapted):
        return adapted, evaluate_before(session, adapted)


def attach_adapter(session: TrainingSession) -> Any:
    """The PEFT model to train. Raises: ConfigError, AdapterError, ProofError: see `attach.attach_adapter` and `parent.attach_parent`."""
    spec, base = session.spec, session.base
    if session.parent is None:
        return attach.attach_adapter(base, spec.lora, spec.seed, training_session.build_init_data(session))
    if is_stacked(session):
        adapted, proof = stack.attach_stacked(base, session.parent, spec.lora, spec.seed, spec.allow_base_mismatch)
        console.print_info(
            f"on top of adapter {session.parent.path}: {proof.tensors} tensors, each as in its file, and frozen"
        )
        return adapted
    adapted, proof = parent.attach_parent(base, session.parent, spec.lora, spec.allow_base_mismatch)
    console.print_info(f"continuing adapter {session.parent.path}: {proof.tensors} tensors, each as in its file")
    if training_session.choose_reference(session) == reference.PARENT:
        reference.add_parent(base, adapted, session.parent)
    return adapted


def is_stacked(session: TrainingSession) -> bool:
    """Whether a fresh adapter is trained on top of the parent, which stays as it is."""
    assert isinstance(session.spec.action, TrainAction)
    return session.parent is not None and session.spec.action.stack


def use_reference(session: TrainingSession, model: Any) -> AbstractContextManager[None]:
    """Within it, what is trained on preferences or evaluated on them is compared with the training's reference model."""
    return reference.use_reference(model, training_session.choose_reference(session))


def evaluate_before(session: TrainingSession, model: Any) -> dict[str, float]:
    """Metrics before training; empty if they are not wanted."""
    assert isinstance(session.spec.action, TrainAction)
    return training_session.evaluate(session, model, "before") if session.spec.action.evaluate_before else {}


def is_untrained(session: TrainingSession, steps: int) -> bool:
    """Whether the adapter is as it was first drawn, after so many steps."""
    return not steps and (session.parent is None or bool((session.parent.metadata or {}).get("untrained")))

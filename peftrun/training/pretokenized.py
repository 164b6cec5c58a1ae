"""TRL's loops on rows that are token ids already.

TRL applies the chat template to conversations by itself. What is trained on must be what was evaluated and previewed, so
each loop takes our token ids at the one place where it would make its own.
"""

from typing import Any

from trl import DPOTrainer, GRPOTrainer, KTOTrainer

from peftrun.tasks.end_tokens import find_end_tokens


class TokenizedDPO(DPOTrainer):
    """Columns: prompt_ids, chosen_ids, rejected_ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class TokenizedKTO(KTOTrainer):
    """Columns: prompt_ids, completion_ids, label."""

    def _prepare_dataset(self, dataset: Any, _: Any, args: Any, *__: Any) -> Any:
        """If the loss estimates the KL divergence, each prompt also gets its neighbor's completion, paired as TRL does: within a
        batch, here that of all processes, so that their number makes no difference."""
        if not self.calculate_KL:
            return dataset

        def pair_completions(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            completions = columns["completion_ids"]
            return {"KL_completion_ids": [completions[-1], *completions[:-1]]}

        batch_size = args.per_device_train_batch_size * args.world_size
        return dataset.map(pair_completions, batched=True, batch_size=batch_size)


class TokenizedGRPO(GRPOTrainer):
    """Columns: `prompt`, token ids. A completion ends at the same tokens as in every other action."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # TRL knows those of the tokenizer and of generation_config.json, not the token that the chat template ends a turn with.
        self.eos_token_ids = find_end_tokens(self.accelerator.unwrap_model(self.model), self.processing_class)
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}  # token ids, images, other inputs of a multimodal model

"""TRL's loops on rows that are token ids already. TRL renders conversations once more by itself; what is learned must be what was measured
and shown, so each loop is given our own ids at the one place where it makes its own."""

from typing import Any

from trl import DPOTrainer, GRPOTrainer, KTOTrainer

from peftrun.tasks.end_tokens import find_end_tokens


class TokenizedDPO(DPOTrainer):
    """Rows: prompt_ids, chosen_ids, rejected_ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class TokenizedKTO(KTOTrainer):
    """Rows: prompt_ids, completion_ids, label."""

    def _prepare_dataset(self, dataset: Any, _: Any, args: Any, *__: Any) -> Any:
        """Where the loss asks for it, each prompt also gets its neighbour's answer, as TRL pairs them: within a batch."""
        if not self.calculate_KL:
            return dataset

        def pair_completions(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = rows["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        return dataset.map(pair_completions, batched=True, batch_size=args.per_device_train_batch_size)


class TokenizedGRPO(GRPOTrainer):
    """Rows: `prompt`, token ids. An answer ends at the same tokens as everywhere else."""

    def __init__(self, *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        self.eos_token_ids = find_end_tokens(self.accelerator.unwrap_model(self.model), self.processing_class)
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

"""TRL's loop for ORPO on rows that are token ids already: see `pretokenized`. Imported only for ORPO, which TRL calls experimental."""

from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from peftrun.tasks.length_checks import IGNORE_INDEX

__all__ = ["ORPOConfig", "TokenizedORPO"]


class TokenizedORPO(ORPOTrainer):
    """Columns: prompt_ids, chosen_ids, rejected_ids."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
        """The columns that the loop's collator reads; labels of prompt tokens are ignored."""
        prompt = feature["prompt_ids"]
        columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            columns |= {
                f"{side}_input_ids": prompt + answer,
                f"{side}_attention_mask": [1] * len(prompt + answer),
                f"{side}_labels": [IGNORE_INDEX] * len(prompt) + answer,
            }
        return columns

"""What a user writes by hand for one cell of a grid: transformers, PEFT and a loop over the held-out rows. Used by sweep.py.

    python benchmarks/sweep_script.py BASE ROWS.json RANK LEARNING_RATE

ROWS.json holds the default task's rows as token ids, so that nothing of peftrun is used here but the rows that it made.
"""

import json
import resource
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main(base: str, rows: str, rank: int, learning_rate: float) -> None:
    """Trains a LoRA with the settings of peftrun's default task, measures it on the held-out rows, prints one line of JSON."""
    with open(rows, encoding="utf-8") as file:
        data = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(base)
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=data["max_steps"],
            learning_rate=learning_rate,
            warmup_steps=10,
            per_device_train_batch_size=4,
            use_cpu=not torch.cuda.is_available(),
            seed=0,
            data_seed=0,
            disable_tqdm=True,
            report_to="none",
            save_steps=20,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(data["train"]),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.train()
        model.save_pretrained(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"peak_mib": peak, **measured(model, tokenizer, data)}))


@torch.inference_mode()
def measured(model: Any, tokenizer: Any, data: dict[str, Any]) -> dict[str, float]:
    """Share of held-out rows whose true answer is likelier than the other; 16 rows in a batch, both answers of each."""
    model.eval()
    collate, rows, right = DataCollatorForSeq2Seq(tokenizer), data["held_out"], 0
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        scores = torch.stack([likelihoods(model, collate([row["answers"][k] for row in some])) for k in range(2)])
        right += int((scores.argmax(0) == torch.tensor([row["true"] for row in some])).sum())
    return {"choice_accuracy": right / len(rows)}


def likelihoods(model: Any, batch: Any) -> torch.Tensor:
    """Log-likelihood of the labels of each row."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    each = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (each * (labels != -100)).sum(-1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))

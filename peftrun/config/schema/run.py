"""Typed schema of a run: one dataclass per config group, one field per key. Values are in `conf/`.

A group of a library has the library's field names: `lora` is passed whole to PEFT's config, `trainer` whole to `trl.SFTConfig`.
`examples` is the value that an error message suggests.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema import peft_methods, weight_update_methods
from peftrun.config.schema.actions import Action, Dtype, Path
from peftrun.config.schema.functions import FunctionReference
from peftrun.config.schema.lora import STRICT, AdaLoraSpec, LoraSpec, NoAdapter, Positive
from peftrun.config.schema.objectives import Objective
from peftrun.config.schema.optimizers import Optim, Schedule
from peftrun.config.schema.quantization_formats import Quantization
from peftrun.config.schema.trackers import Tracker


@dataclass(config=STRICT)
class ModelSpec:
    """The frozen base model."""

    name_or_path: Path  # a Hub id, a folder, or a .gguf file; with `package`: a path inside it
    package: str | None  # an installed package that contains the model
    revision: str | None
    quantization: Quantization | None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None
    trust_remote_code: bool
    chat_template: Path | None = None  # a name or a Jinja file; null: the tokenizer's own
    special_tokens: dict[Literal["bos", "eos", "unk", "sep", "pad", "cls", "mask"], str] | None = None
    new_tokens: list[str] | None = None
    pad_vocab_to_multiple_of: Positive | None = None  # rows of embeddings, where new tokens need more of them
    arguments: dict[str, Any] | None = None  # further values for its config, and for the loader


Lora = Annotated[
    LoraSpec | NoAdapter | AdaLoraSpec | weight_update_methods.METHODS | peft_methods.METHODS,
    Field(discriminator="method"),
]


@dataclass(config=STRICT)
class MixtureSpec:
    """One more source of rows, of the same type as the first."""

    path: Path  # like that of the first source
    weight: Annotated[float, Field(gt=0, examples=[1.0])]  # the first source's is 1
    prompt_template: str | None = None  # its own; null: the task's
    completion_template: str | None = None  # null: the task's
    config_name: str | None = None  # on the Hub: configuration of the dataset
    revision: str | None = None  # on the Hub: branch, tag or commit
    split: str | None = None  # on the Hub; null: the first source's


@dataclass(config=STRICT)
class DataSpec:
    """Where rows come from: a file in an installed package, the user's own file, or the Hub."""

    source: Literal["package", "file", "hub"]
    path: Path  # csv, tsv, json, jsonl, parquet, arrow or txt; on the Hub: the dataset's id
    package: str | None
    config_name: str | None  # on the Hub: configuration of the dataset
    revision: str | None
    split: str
    test_path: Path | None  # file of evaluation rows; null: split off from `path`
    test_split: str | None  # on the Hub: split with the evaluation rows
    num_train_rows: Positive | None
    num_test_rows: Positive
    num_validation_rows: Positive | None
    label_column: str | None
    adapter_column: str | None
    group_column: str | None
    mixture: dict[str, MixtureSpec] | None
    streaming: bool
    labels: dict[str, str] | None  # value in `label_column` → word to generate
    deduplicate: bool
    balance: bool
    split_strategy: Literal["random", "last"]
    split_seed: int
    cache: bool


@dataclass(config=STRICT)
class LmEvalSpec:
    """Tasks of lm-evaluation-harness. The batch size is trainer.per_device_eval_batch_size, the seeds are `seed`."""

    tasks: Annotated[list[str], Field(min_length=1, examples=["[arc_easy]"])]
    include_path: Path | None  # a folder with YAML files of further tasks
    num_fewshot: Annotated[int, Field(ge=0, examples=[5])] | None
    limit: Positive | None
    apply_chat_template: bool
    log_samples: bool


@dataclass(config=STRICT)
class TaskSpec:
    """The training task. Templates name columns: `{text}`."""

    type: Literal[
        "causal_lm", "seq_cls", "token_cls", "seq2seq", "preference", "unpaired_preference", "prompt_only", "lm_eval"
    ]
    data: DataSpec
    messages_column: str | None  # a column of chat messages, instead of templates
    tools: Path | None  # a JSON file of tools, for rows without their own
    template_arguments: dict[str, str | int | float | bool | None] | None  # passed to the model's chat template
    special_tokens_in_text: Literal["keep", "escape", "refuse"]
    system_prompt: str | None
    prompt_template: str | None
    completion_template: str | None
    label_names: (
        Annotated[list[str], Field(min_length=2, examples=["[no, yes]"])] | None
    )  # of a classifier's outputs, in order of their index
    chosen_column: str | None  # preference: column of the preferred answers
    rejected_column: str | None  # preference: column of the rejected answers
    desirable_column: str | None  # unpaired_preference: column that says whether an answer is good
    lm_eval: LmEvalSpec | None  # tasks of lm-evaluation-harness
    objective: Objective | None  # for preferences and rewards
    tokens_column: str | None  # token_cls: column of words
    tags_column: str | None  # token_cls: column of tags, one per word
    loss_on: Literal["completion", "assistant", "all"]
    metrics: list[Literal["bleu", "chrf", "rouge_1", "rouge_2", "rouge_l"] | FunctionReference] | None
    max_new_tokens: Positive
    max_length: Annotated[int, Field(ge=2, examples=[128])]  # tokens, prompt and completion together


HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo")


@dataclass(config=STRICT)
class TrainerSpec:
    """Every field but early_stopping_patience, HUB_KEYS and arguments is passed to `trl.SFTConfig`, or the config of another trainer, under its own name;
    so is each of `arguments`.
    """

    learning_rate: Annotated[float, Field(gt=0, examples=[2e-4])]
    lr_scheduler_type: Schedule
    lr_scheduler_kwargs: dict[str, int | float | str | bool] | None  # extra arguments of the schedule
    warmup_steps: Annotated[float, Field(ge=0, examples=[0.1])]
    max_steps: Annotated[int, Field(ge=-1, examples=[60])]  # -1: num_train_epochs applies; 0: no step
    num_train_epochs: Annotated[float, Field(gt=0, examples=[1])]
    per_device_train_batch_size: Annotated[int, Field(ge=1, examples=[4])]
    per_device_eval_batch_size: Annotated[int, Field(ge=1, examples=[16])]
    gradient_accumulation_steps: Positive
    weight_decay: Annotated[float, Field(ge=0, examples=[0.01])]
    max_grad_norm: Annotated[float, Field(ge=0, examples=[1.0])]
    optim: Optim
    adam_beta1: Annotated[float, Field(ge=0, lt=1, examples=[0.9])]
    adam_beta2: Annotated[float, Field(ge=0, lt=1, examples=[0.999])]
    adam_epsilon: Annotated[float, Field(gt=0, examples=[1e-8])]
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1, examples=[0.1])]
    neftune_noise_alpha: Annotated[float, Field(gt=0, examples=[5.0])] | None
    packing: bool
    padding_free: bool
    gradient_checkpointing: bool
    activation_offloading: bool
    torch_compile: bool
    use_liger_kernel: bool | None  # null: on a GPU, if the package has kernels for the architecture
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"]
    logging_steps: Positive
    save_strategy: Literal["no", "steps", "epoch"]
    save_steps: Positive
    save_total_limit: Positive | None
    eval_strategy: Literal["no", "steps", "epoch"]
    eval_steps: Positive
    load_best_model_at_end: bool
    metric_for_best_model: Annotated[str, Field(min_length=1, examples=["loss"])]
    greater_is_better: bool | None  # null: as it is for the metric
    early_stopping_patience: Positive | None
    dataloader_num_workers: Annotated[int, Field(ge=0, examples=[0])]
    push_to_hub: bool
    hub_model_id: Annotated[str, Field(min_length=1, examples=["ORG/NAME"])] | None
    hub_strategy: Literal["end", "every_save", "checkpoint"]
    hub_private_repo: bool
    arguments: dict[str, Any] | None  # further fields of the training config


@dataclass(config=STRICT)
class DeviceSpec:
    """Hardware, precision and processes."""

    type: Literal["auto", "cpu", "cuda", "mps", "xpu"]
    dtype: Dtype
    num_threads: Positive | None
    strategy: Literal["ddp", "fsdp", "deepspeed"] | None
    num_processes: Positive  # on this machine
    num_machines: Positive
    machine_rank: Annotated[int, Field(ge=0, examples=[0])]
    main_process_ip: str | None
    main_process_port: Annotated[int, Field(ge=1, le=65535, examples=[29500])]
    deepspeed_config: Path | None
    deterministic: bool  # use deterministic algorithms: the same bytes each time
    tf32: bool  # multiply float32 matrices in TF32 while training
    memory_check: bool  # refuse a run that will not fit into memory before loading it
    max_memory: dict[str, str] | None  # device (cpu, 0, 1, …) → memory limit for the base model, such as 4GiB


@dataclass(config=STRICT)
class TemplateParamSpec:
    """A parameter of a template, set by its user."""

    type: Literal["path", "str", "int", "float", "bool"]  # type of its value
    help: str  # one line for the user


@dataclass(config=STRICT)
class TemplateSpec:
    """The team template that a run uses, and its parameters."""

    name: Annotated[str, Field(min_length=1, examples=["ours/NAME"])]  # of the template
    version: Annotated[str, Field(min_length=1, examples=['"1.0.0"'])]  # of the template; stored in the record
    params: dict[str, TemplateParamSpec]  # name → type and help text


@dataclass(config=STRICT)
class RunSpec:
    """A whole run, as composed by `conf/config.yaml`."""

    action: Action  # what to do
    model: ModelSpec
    lora: Lora  # PEFT method and size of the adapter
    task: TaskSpec
    trainer: TrainerSpec
    device: DeviceSpec
    tracker: Tracker  # experiment tracker
    seed: Annotated[int, Field(ge=0, lt=2**32, examples=[0])]
    adapter: dict[str, str]
    active_adapter: str | None
    allow_base_mismatch: bool
    params: dict[str, str | int | float | bool]  # values of the template's parameters
    template: TemplateSpec | None


def needs_processes(spec: RunSpec) -> bool:
    """Whether this run uses several processes (torchrun)."""
    return spec.device.strategy is not None and spec.action.name == "train"

"""Group `action`: the options of each action, one dataclass per action. For keys that may omit `action.` see `config.shorthand`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.lora import STRICT, Positive

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Path = Annotated[str, Field(min_length=1, examples=["PATH"])]


@dataclass(config=STRICT)
class TrainAction:
    """Train an adapter on the task; evaluate before and after; save it."""

    name: Literal["train"]
    resume: (
        Path | None
    )  # a run folder, here, on the Hub or under a URL; or `auto`: the newest unfinished run with the same config
    evaluate_before: bool
    num_samples: Annotated[
        int, Field(ge=0, examples=[3])
    ]  # evaluation rows answered before and after training, for the report
    stack: bool  # train a new adapter on top of the one that `adapter` names, which stays as it is
    upload_to: Path | None = None  # a URL, below which the run folder is copied


@dataclass(config=STRICT)
class SaveAction:
    """Save loaded adapters again (all, or those named), in another dtype if given; without an adapter, a new untrained one."""

    name: Literal["save"]
    adapters: Annotated[list[str], Field(min_length=1, examples=["[default]"])] | None
    dtype: Dtype
    output_dir: Path | None


@dataclass(config=STRICT)
class ReloadAction:
    """Load an adapter in a new process, verify the load, evaluate."""

    name: Literal["reload"]
    evaluate: bool


@dataclass(config=STRICT)
class EvaluateAction:
    """Evaluate the base model, with an adapter or without."""

    name: Literal["evaluate"]


@dataclass(config=STRICT)
class GenerateAction:
    """Generate answers to a prompt, a file of prompts, or an interactive chat."""

    name: Literal["generate"]
    prompt: str | None
    prompts_file: Path | None
    batch_size: Positive
    max_new_tokens: Annotated[int, Field(ge=1, examples=[64])]
    temperature: Annotated[float, Field(ge=0, examples=[0.7])]  # 0: greedy
    top_p: Annotated[float, Field(gt=0, le=1, examples=[0.9])]


@dataclass(config=STRICT)
class MergeAction:
    """Write a full model with the adapter merged in, and verify it."""

    name: Literal["merge"]
    dtype: Dtype
    output_dir: Path | None
    verify: bool
    num_eval_rows: Annotated[int, Field(ge=0, examples=[16])]


@dataclass(config=STRICT)
class CombineAction:
    """Combine several adapters into one, and measure its distance from their weighted sum."""

    name: Literal["combine"]
    combination_type: Literal[
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
        "magnitude_prune", "magnitude_prune_svd",
    ]  # fmt: skip
    weights: dict[str, float] | None  # adapter → weight; null: 1 each
    density: Annotated[float, Field(gt=0, le=1, examples=[0.5])] | None
    majority_sign_method: Literal["total", "frequency"]
    rank: Positive | None
    output_dir: Path | None


@dataclass(config=STRICT)
class ExtractAction:
    """Extract an adapter from a fully fine-tuned model: the weight difference at a given rank."""

    name: Literal["extract"]
    finetuned_model: Path
    output_dir: Path | None


@dataclass(config=STRICT)
class UnmergeAction:
    """Subtract an adapter from a merged model."""

    name: Literal["unmerge"]
    dtype: Dtype
    output_dir: Path | None


@dataclass(config=STRICT)
class InspectAction:
    """Show the content of adapters; no model is loaded."""

    name: Literal["inspect"]


@dataclass(config=STRICT)
class DiffAction:
    """Compare two adapters; no model is loaded."""

    name: Literal["diff"]


@dataclass(config=STRICT)
class PlanAction:
    """Estimate memory and time of a training run. `measure_steps`: steps on the real base model, to measure time; 0: nothing is loaded. The others are those of train."""

    name: Literal["plan"]
    resume: Path | None
    evaluate_before: bool
    num_samples: Annotated[int, Field(ge=0, examples=[3])]
    stack: bool
    measure_steps: Annotated[int, Field(ge=0, examples=[3])]
    upload_to: Path | None = None


@dataclass(config=STRICT)
class PreviewAction:
    """Show rows as tokens with their labels; no weights are loaded."""

    name: Literal["preview"]
    rows: Annotated[int, Field(ge=0, examples=[5])]  # number of training rows to show
    at: Positive | None  # number of one row in the data, shown instead
    tokens: bool  # show each token with its id


@dataclass(config=STRICT)
class ReplayAction:
    """Run a record again from its config, and compare the results."""

    name: Literal["replay"]
    run: Path | None  # a run folder
    check_only: bool  # only list what has changed since; nothing is run
    tolerance: Annotated[float, Field(ge=0, examples=[1e-3])]  # largest difference between weights that counts as equal


@dataclass(config=STRICT)
class ExplainAction:
    """Show where each value of a config comes from, or how two runs differ."""

    name: Literal["explain"]
    run: Path | None  # a run folder, instead of the typed command
    compare_with: Path | None  # another run folder, to compare with
    for_action: str  # the action whose config is explained
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class TemplateAction:
    """Create a package of configs that a team installs with pip."""

    name: Literal["template"]
    path: Path | None


@dataclass(config=STRICT)
class ImportAction:
    """Convert a config of another tool into an experiment."""

    name: Literal["import"]
    source: Path | None  # their file; typed as from=, which no field can be called in Python
    tool: Literal["axolotl", "llama-factory", "trl", "ms-swift", "peft"] | None  # null: detected from the keys
    output: Path | None  # the experiment's file


@dataclass(config=STRICT)
class CheckAction:
    """Resolve every option on the search path, and check that it fits its model."""

    name: Literal["check"]
    build: bool  # also build each model on torch's meta device, without weights


@dataclass(config=STRICT)
class ListAction:
    """Find runs and adapters; no model is loaded."""

    name: Literal["list"]
    dirs: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None  # a condition, such as "task=sms_spam and r>=8"
    sort: str | None  # a column; with `-` before it the largest first
    limit: Positive | None
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class CompareAction:
    """Compare runs: differing values and results; no model is loaded."""

    name: Literal["compare"]
    runs: Annotated[list[str], Field(examples=["[outputs/train/RUN,outputs/train/RUN2]"])] | None  # run folders
    dirs: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None  # a condition, instead of `runs`
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class BrowseAction:
    """Show the catalog of runs as a web page on this machine; no model is loaded."""

    name: Literal["browse"]
    dirs: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None
    host: Annotated[str, Field(min_length=1, examples=["127.0.0.1"])]
    port: Annotated[int, Field(ge=0, le=65535, examples=[8600])]


@dataclass(config=STRICT)
class ServeAction:
    """Serve OpenAI's API over HTTP: one base model, each adapter as a model."""

    name: Literal["serve"]
    host: Annotated[str, Field(min_length=1, examples=["127.0.0.1"])]
    port: Annotated[int, Field(ge=0, le=65535, examples=[8000])]
    max_batch_size: Positive  # requests generated at once
    max_waiting: Positive  # requests in the queue
    max_new_tokens: Annotated[int, Field(ge=1, examples=[256])]  # for requests without a limit
    request_timeout: Annotated[float, Field(gt=0, examples=[600])]  # seconds
    shutdown_timeout: Annotated[float, Field(ge=0, examples=[30])]  # seconds
    max_body_bytes: Annotated[int, Field(ge=1024, examples=[4194304])]  # largest size of a request
    api_key_env: Annotated[str, Field(min_length=1, examples=["PEFTRUN_API_KEY"])] | None


@dataclass(config=STRICT)
class ExportAction:
    """Export for other programs: a Hub folder with a model card, a folder for vLLM, a GGUF adapter."""

    name: Literal["export"]
    target: Literal["hub", "vllm", "gguf"]
    model_dir: Path | None  # target=hub: a full model instead of an adapter
    base_model: Annotated[str, Field(min_length=1, examples=["ORG/NAME"])] | None  # the base model's id on the Hub
    license: Annotated[str, Field(min_length=1, examples=["apache-2.0"])] | None
    repo_id: Annotated[str, Field(min_length=1, examples=["ORG/NAME"])] | None
    push: bool
    private: bool
    output_dir: Path | None


Action = Annotated[
    TrainAction
    | SaveAction
    | ReloadAction
    | EvaluateAction
    | GenerateAction
    | MergeAction
    | UnmergeAction
    | CombineAction
    | ExtractAction
    | InspectAction
    | DiffAction
    | PlanAction
    | PreviewAction
    | ReplayAction
    | ExplainAction
    | TemplateAction
    | ImportAction
    | CheckAction
    | ListAction
    | CompareAction
    | BrowseAction
    | ServeAction
    | ExportAction,
    Field(discriminator="name"),
]

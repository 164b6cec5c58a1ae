"""Group `action`: what each action is asked, one dataclass an action. What `action.` may be left out of is told by `typed`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftrun.config.schema.lora import STRICT, Positive

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Path = Annotated[str, Field(min_length=1, examples=["PATH"])]


@dataclass(config=STRICT)
class TrainAction:
    """Learn the task; evaluate before and after; save the adapter."""

    name: Literal["train"]
    resume: Path | None  # a run folder, or `auto`: the newest unfinished run with this very config
    evaluate_before: bool
    samples: Annotated[int, Field(ge=0, examples=[3])]  # held-out rows answered before and after, for the report


@dataclass(config=STRICT)
class SaveAction:
    """Write adapters again (all, or those named), in another dtype if asked; a fresh one if none is given."""

    name: Literal["save"]
    adapters: Annotated[list[str], Field(min_length=1, examples=["[default]"])] | None
    dtype: Dtype
    output_dir: Path | None


@dataclass(config=STRICT)
class ReloadAction:
    """Load in a fresh process, prove the load, evaluate."""

    name: Literal["reload"]
    evaluate: bool


@dataclass(config=STRICT)
class EvaluateAction:
    """Measure the base, with an adapter or without."""

    name: Literal["evaluate"]


@dataclass(config=STRICT)
class GenerateAction:
    """Answer a prompt, a file of prompts, or a person."""

    name: Literal["generate"]
    prompt: str | None
    prompts_file: Path | None
    batch_size: Positive
    max_new_tokens: Annotated[int, Field(ge=1, examples=[64])]
    temperature: Annotated[float, Field(ge=0, examples=[0.7])]  # 0: greedy
    top_p: Annotated[float, Field(gt=0, le=1, examples=[0.9])]


@dataclass(config=STRICT)
class MergeAction:
    """Write a full model that needs no adapter, and prove it."""

    name: Literal["merge"]
    dtype: Dtype
    output_dir: Path | None
    verify: bool
    held_out_rows: Annotated[int, Field(ge=0, examples=[16])]


@dataclass(config=STRICT)
class CombineAction:
    """Make one adapter of several, and measure it against their weighted sum."""

    name: Literal["combine"]
    combination: Literal[
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
    """Make an adapter of what full fine-tuning has changed."""

    name: Literal["extract"]
    tuned: Path
    output_dir: Path | None


@dataclass(config=STRICT)
class UnmergeAction:
    """Take an adapter out of a merged model again."""

    name: Literal["unmerge"]
    dtype: Dtype
    output_dir: Path | None


@dataclass(config=STRICT)
class InspectAction:
    """Say what adapters hold; no model is loaded."""

    name: Literal["inspect"]


@dataclass(config=STRICT)
class DiffAction:
    """Compare two adapters; no model is loaded."""

    name: Literal["diff"]


@dataclass(config=STRICT)
class PlanAction:
    """Say what training would take. `measured_steps`: taken on the real base to tell the time; 0: nothing is loaded. The others are the training's."""

    name: Literal["plan"]
    resume: Path | None
    evaluate_before: bool
    samples: Annotated[int, Field(ge=0, examples=[3])]
    measured_steps: Annotated[int, Field(ge=0, examples=[3])]


@dataclass(config=STRICT)
class PreviewAction:
    """Show rows as they will be learned; no weights are loaded."""

    name: Literal["preview"]
    rows: Annotated[int, Field(ge=0, examples=[5])]  # training rows that are shown
    at: Positive | None  # the number of one row in the data, in their place
    tokens: bool  # each token with its id


@dataclass(config=STRICT)
class ReplayAction:
    """Run a record again from its own config, and compare what comes out."""

    name: Literal["replay"]
    run: Path | None  # a run folder
    env: Literal["check"] | None  # check: only say what has drifted since
    tolerance: Annotated[float, Field(ge=0, examples=[1e-3])]  # largest difference of a weight that counts as equal


@dataclass(config=STRICT)
class ExplainAction:
    """Say where each value of a config comes from, or how two runs differ."""

    name: Literal["explain"]
    run: Path | None  # a run folder, in place of what is typed
    against: Path | None  # another one
    of: str  # the action whose config is explained
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class TemplateAction:
    """Make a package of configs that a team installs with pip."""

    name: Literal["template"]
    path: Path | None


@dataclass(config=STRICT)
class CheckAction:
    """Resolve every option on the search path, and see that it fits its model."""

    name: Literal["check"]
    build: bool  # also each model, without weights, on torch's meta device


@dataclass(config=STRICT)
class ListAction:
    """Find runs and adapters; no model is loaded."""

    name: Literal["list"]
    roots: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None  # which of them: "task=sms_spam and r>=8"
    sort: str | None  # by what: a column, `-` before it for the largest first
    limit: Positive | None
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class CompareAction:
    """Set runs side by side: what differs, what came out; no model is loaded."""

    name: Literal["compare"]
    runs: Annotated[list[str], Field(examples=["[outputs/train/RUN,outputs/train/RUN2]"])] | None  # run folders
    roots: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None  # in place of `runs`
    format: Literal["table", "json"]


@dataclass(config=STRICT)
class BrowseAction:
    """Show the catalogue as a web page on this machine; no model is loaded."""

    name: Literal["browse"]
    roots: Annotated[list[str], Field(min_length=1, examples=["[outputs]"])]
    where: str | None
    host: Annotated[str, Field(min_length=1, examples=["127.0.0.1"])]
    port: Annotated[int, Field(ge=0, le=65535, examples=[8600])]


@dataclass(config=STRICT)
class ServeAction:
    """Answer over HTTP as OpenAI's API does, one base and every adapter."""

    name: Literal["serve"]
    host: Annotated[str, Field(min_length=1, examples=["127.0.0.1"])]
    port: Annotated[int, Field(ge=0, le=65535, examples=[8000])]
    max_batch_size: Positive  # answers computed at once
    max_waiting: Positive  # answers that wait for their turn
    max_new_tokens: Annotated[int, Field(ge=1, examples=[256])]  # of an answer whose request sets no limit
    request_timeout: Annotated[float, Field(gt=0, examples=[600])]  # seconds
    shutdown_timeout: Annotated[float, Field(ge=0, examples=[30])]  # seconds
    max_body_bytes: Annotated[int, Field(ge=1024, examples=[4194304])]  # of a request
    api_key_env: Annotated[str, Field(min_length=1, examples=["PEFTRUN_API_KEY"])] | None


@dataclass(config=STRICT)
class ExportAction:
    """Write what others load: a Hub folder with a model card, a folder for vLLM, a GGUF adapter."""

    name: Literal["export"]
    target: Literal["hub", "vllm", "gguf"]
    model_dir: Path | None  # target=hub: a full model in place of an adapter
    base_model: Annotated[str, Field(min_length=1, examples=["ORG/NAME"])] | None  # the base's id on the Hub
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
    | CheckAction
    | ListAction
    | CompareAction
    | BrowseAction
    | ServeAction
    | ExportAction,
    Field(discriminator="name"),
]

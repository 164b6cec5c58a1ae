"""What a client may ask, and that it is well asked. Fields of OpenAI's API that would change the answer and are not computed are refused by name."""

import json
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from peftrun.serving import errors
from peftrun.serving.messages import Message, StrictModel, Tool
from peftrun.serving.sampling import SamplingParams
from peftrun.tasks.messages import Conversation, parse_tools

IGNORED_FIELDS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)  # change no answer
NO_OP_VALUES: dict[str, tuple[Any, ...]] = {  # values that ask for nothing; everything else under these keys is refused
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
}
Stop = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0)]
Unit = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(StrictModel):
    """Of an answer that comes in pieces."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(StrictModel):
    """What both endpoints read."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Unit = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0  # vLLM's; 0 and -1: all
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None  # vLLM's
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    def list_stops(self) -> list[str]:
        """Where an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def build_sampling_params(self, logprobs: int | None, repetition_penalty: float, vocabulary: int) -> SamplingParams:
        """How tokens are chosen. Raises: ApiFault: a bias is for no token."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=min(max(self.top_k, 0), vocabulary),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty or repetition_penalty,
            logit_bias={_parse_token_id(key, vocabulary): bias for key, bias in self.logit_bias.items()},
            logprobs=logprobs,
        )


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: bool = True
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def get_max_tokens(self) -> int | None:
        """Tokens of an answer, at most; None where nothing is said."""
        return self.max_completion_tokens or self.max_tokens

    def get_top_logprobs(self) -> int | None:
        """How many rivals of a token are told; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check_tool_calls(self) -> Self:
        if self.tools and not self.parallel_tool_calls:
            raise errors.invalid_request(
                "Unsupported value: 'parallel_tool_calls' cannot be false beside 'tools': nothing keeps the model from several calls; omit it",
                "parallel_tool_calls", "unsupported_value",
            )  # fmt: skip
        return self

    def build_conversation(self) -> Conversation:
        """Its messages, and the tools that may be called in answer to them."""
        tools = [one.raw for one in self.tools] if self.tool_choice == "auto" else []
        return Conversation(tuple(one.to_training_message() for one in self.messages), parse_tools(tools))


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def get_max_tokens(self) -> int | None:
        """Tokens of an answer, at most; None where nothing is said."""
        return self.max_tokens

    def get_top_logprobs(self) -> int | None:
        """How many rivals of a token are told; None: no log probabilities."""
        return self.logprobs

    def list_prompts(self) -> list[str | list[int]]:
        """Each of them, as text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class LoadLoraRequest(StrictModel):
    """POST /v1/load_lora_adapter, vLLM's."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: Annotated[str, Field(min_length=1)]
    load_inplace: bool = False


class UnloadLoraRequest(StrictModel):
    """POST /v1/unload_lora_adapter, vLLM's."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_int_id: int | None = None


def parse_request(body: bytes, kind: Any) -> Any:
    """The wish in a request's body. Raises: ApiFault: it is not JSON, or asks for what is not there."""
    try:
        given = json.loads(body, parse_constant=_reject_constant)
        json.dumps(given, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.invalid_request(
            f"We could not parse the JSON body of your request ({reason})", code="invalid_json"
        ) from error
    if not isinstance(given, dict):
        raise errors.invalid_request("The body of your request must be a JSON object", code="invalid_json")
    try:
        return TypeAdapter(kind).validate_python(_drop_no_ops(given, kind))
    except ValidationError as error:
        raise _convert_validation_error(error) from error


def _drop_no_ops(given: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Without nulls and what asks for nothing. Raises: ApiFault: a field that is not supported."""
    found = _drop_nulls(given)
    for key in [key for key in found if key not in kind.model_fields]:
        if key not in IGNORED_FIELDS and not any(found[key] == value for value in NO_OP_VALUES.get(key, ())):
            known = key in NO_OP_VALUES
            raise errors.invalid_request(
                f"Unsupported value: `{key}` is not supported by this server; omit it"
                if known
                else f"Unrecognized request argument supplied: {key}",
                key,
                "unsupported_value" if known else "unknown_parameter",
            )
        del found[key]
    return found


def _drop_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """Clients send back messages as they got them: with null where something is not there."""
    found = {key: value for key, value in given.items() if value is not None}
    if isinstance(found.get("messages"), list):
        found["messages"] = [
            {key: value for key, value in one.items() if value not in (None, [])} if isinstance(one, dict) else one
            for one in found["messages"]
        ]
    return found


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _parse_token_id(key: str, vocabulary: int) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocabulary:
        raise errors.invalid_request(
            f"Invalid key in 'logit_bias': {key[:40]!r}; must be a token id below {vocabulary}", "logit_bias"
        )
    return int(key)


def _convert_validation_error(error: ValidationError) -> errors.ApiError:
    """The first problem, with the place where it is."""
    first = error.errors(include_url=False, include_context=False)[0]
    steps = [step for step in first["loc"] if isinstance(step, int) or step.isidentifier()]
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or None
    shown = repr(first["input"])[:80]
    if first["type"] == "missing":
        return errors.invalid_request(f"Missing required parameter: '{place}'", place, "missing_required_parameter")
    return errors.invalid_request(f"Invalid value for '{place}': {shown}; {first['msg']}", place, "invalid_value")

"""Bodies of requests, as OpenAI's API defines them, and their validation.

Fields of that API that would change the answer and are not supported are refused by name.
"""

import json
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from peftrun.serving import errors
from peftrun.serving.messages import Message, StrictModel, Tool
from peftrun.serving.sampling import SamplingParams
from peftrun.tasks.messages import Conversation, parse_tools

# Fields that do not change the answer.
IGNORED_FIELDS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
# Unsupported fields → values that have no effect; any other value is refused.
NO_OP_VALUES: dict[str, tuple[Any, ...]] = {
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
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(StrictModel):
    """Fields of chat completions and completions."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Unit = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0  # vLLM's; 0 and -1: all tokens
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None  # vLLM's; None: as the model's files say
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    def list_stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def build_sampling_params(self, logprobs: int | None, repetition_penalty: float, vocab_size: int) -> SamplingParams:
        """How tokens are chosen. Args: repetition_penalty: the default. Raises: ApiError: a bias is for an unknown token."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=min(max(self.top_k, 0), vocab_size),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty or repetition_penalty,
            logit_bias={_parse_token_id(key, vocab_size): bias for key, bias in self.logit_bias.items()},
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
        """Most tokens of an answer; None: the request sets no limit."""
        return self.max_completion_tokens or self.max_tokens

    def get_top_logprobs(self) -> int | None:
        """How many alternatives to a token are returned; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check_tool_calls(self) -> Self:
        if self.tools and not self.parallel_tool_calls:
            raise errors.invalid_request(
                "Unsupported value: 'parallel_tool_calls' cannot be false with 'tools': nothing keeps the model from several calls; omit it",
                "parallel_tool_calls", "unsupported_value",
            )  # fmt: skip
        return self

    def build_conversation(self) -> Conversation:
        """The messages, and the tools that the model may call."""
        tools = [tool.raw for tool in self.tools] if self.tool_choice == "auto" else []
        return Conversation(tuple(message.to_training_message() for message in self.messages), parse_tools(tools))


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
        """Most tokens of an answer; None: the request sets no limit."""
        return self.max_tokens

    def get_top_logprobs(self) -> int | None:
        """How many alternatives to a token are returned; None: no log probabilities."""
        return self.logprobs

    def list_prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
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


def parse_request(body: bytes, request_class: Any) -> Any:
    """The request in a body. Raises: ApiError: the body is not JSON, or not a valid request of this class."""
    try:
        values = json.loads(body, parse_constant=_reject_constant)
        json.dumps(values, ensure_ascii=False).encode()  # fails on half a surrogate pair, which is no text
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.invalid_request(
            f"We could not parse the JSON body of your request ({reason})", code="invalid_json"
        ) from error
    if not isinstance(values, dict):
        raise errors.invalid_request("The body of your request must be a JSON object", code="invalid_json")
    try:
        return TypeAdapter(request_class).validate_python(_drop_no_ops(values, request_class))
    except ValidationError as error:
        # The first problem, with its path in the request, such as `messages[0].role`.
        first = error.errors(include_url=False, include_context=False)[0]
        # pydantic adds steps for the variants of a union, which are no identifiers.
        steps = [step for step in first["loc"] if isinstance(step, int) or step.isidentifier()]
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or None
        if first["type"] == "missing":
            message, code = f"Missing required parameter: '{path}'", "missing_required_parameter"
        else:
            message = f"Invalid value for '{path}': {repr(first['input'])[:80]}; {first['msg']}"
            code = "invalid_value"
        raise errors.invalid_request(message, path, code) from error


def _reject_constant(text: str) -> NoReturn:
    """json.loads accepts NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{text} is no number")


def _drop_no_ops(values: dict[str, Any], request_class: Any) -> dict[str, Any]:
    """Without nulls, and without fields and values that have no effect. Raises: ApiError: a field is not supported."""
    # Clients send an assistant's messages back as they got them: with null, or an empty list, for what is not there.
    fields = {key: value for key, value in values.items() if value is not None}
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [
            {key: value for key, value in message.items() if value not in (None, [])}
            if isinstance(message, dict)
            else message
            for message in fields["messages"]
        ]
    for key in [key for key in fields if key not in request_class.model_fields]:
        no_ops = NO_OP_VALUES.get(key, ())
        if key not in IGNORED_FIELDS and not any(fields[key] == value for value in no_ops):
            message = f"Unsupported value: `{key}` is not supported by this server; omit it"
            unknown = f"Unrecognized request argument supplied: {key}"
            raise (
                errors.invalid_request(message, key, "unsupported_value")
                if no_ops
                else errors.invalid_request(unknown, key, "unknown_parameter")
            )
        del fields[key]
    return fields


def _parse_token_id(key: str, vocab_size: int) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab_size:
        raise errors.invalid_request(
            f"Invalid key in 'logit_bias': {key[:40]!r}; must be a token id below {vocab_size}", "logit_bias"
        )
    return int(key)

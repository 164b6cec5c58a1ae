"""Messages and tools of a request: checked as in OpenAI's API, then passed to the chat template as training rows are."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)

from peftrun.tasks.messages import Message as TrainingMessage
from peftrun.tasks.messages import parse_message

ROLES = {"developer": "system"}  # OpenAI's role → the role that chat templates know


class StrictModel(BaseModel):
    """An object of a request: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(StrictModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class _RawModel(StrictModel):
    """An object that keeps the client's own dictionary in addition to the checked fields.

    The chat template gets that dictionary: with the keys in another order it would write another prompt.
    """

    _raw: dict[str, Any] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_raw(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        model = handler(raw)
        model._raw = raw
        return model

    @property
    def raw(self) -> dict[str, Any]:
        """The dictionary that the client sent."""
        return self._raw


class FunctionCall(StrictModel):
    """A function's name and arguments. The arguments are a JSON object, or its text."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any]

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(arguments, str) and not isinstance(json.loads(arguments or "{}"), dict):
            raise ValueError("must be a JSON object")
        return arguments


class ToolCall(StrictModel):
    """A call in an earlier answer."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: FunctionCall


class Message(_RawModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} calls no tools")
        if self.content is None and not self.tool_calls:
            raise ValueError("has neither content nor tool_calls")
        return self

    def to_training_message(self) -> TrainingMessage:
        """The message as it would be in a training row."""
        message, _ = parse_message(self.raw)
        return TrainingMessage(message | {"role": ROLES.get(self.role, self.role)})


class Function(StrictModel):
    """A function that the model may call. `parameters`: the JSON schema of its arguments."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # true promises arguments that obey the schema, which nothing here enforces


class Tool(_RawModel):
    """A tool that is shown to the model."""

    type: Literal["function"]
    function: Function

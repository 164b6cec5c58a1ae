"""Messages and tools of a request: checked as OpenAI's API has them, then handed to the chat template as a row of training would be."""

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

from peftrun.tasks.messages import Message as Learned
from peftrun.tasks.messages import parse_message

ROLES = {"developer": "system"}


class StrictModel(BaseModel):
    """An object of a request: no other keys than these, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(StrictModel):
    """Part of a message."""

    type: Literal["text"]
    text: str


class _RawModel(StrictModel):
    """A part that is checked, and handed to the chat template as the client wrote it: another order of its keys would be another prompt."""

    _raw: dict[str, Any] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_raw(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        found = check(given)
        found._raw = given
        return found

    @property
    def raw(self) -> dict[str, Any]:
        """As the client wrote it."""
        return self._raw


class FunctionCall(StrictModel):
    """What is called. The arguments are JSON, as a text or as an object."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any]

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, given: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(given, str) and not isinstance(json.loads(given or "{}"), dict):
            raise ValueError("must be a JSON object")
        return given


class ToolCall(StrictModel):
    """A call that an earlier answer made."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: FunctionCall


class Message(_RawModel):
    """One turn of a talk."""

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

    def to_training_message(self) -> Learned:
        """As a row of training would have it."""
        found, _ = parse_message(self.raw)
        return Learned(found | {"role": ROLES.get(self.role, self.role)})


class Function(StrictModel):
    """A function that may be called. `parameters`: the JSON schema of its arguments."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # whoever asks for it relies on arguments that obey the schema


class Tool(_RawModel):
    """A tool that the model is told of."""

    type: Literal["function"]
    function: Function

"""The language of `where`: conditions on columns, joined by and, or, not and parentheses. Nothing of it is executed.

task=sms_spam and (lora.r>=8 or method=dora) and not exact_match<0.9 and date>=2026-11-01
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from peftrun.errors import ConfigError

OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
BOOL_OPERATORS = ("and", "or", "not")
MAX_DEPTH = 50  # parentheses and nots within each other
TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign><=|>=|!=|==|[=<>~()])|(?P<word>[^\s=<>~()!"']+))""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Condition:
    """A column, one of `OPERATORS`, and a value as typed. `quoted`: then `null` and `true` are words."""

    column: str
    operator: str
    value: str
    quoted: bool = False


@dataclass(frozen=True)
class Not:
    """What must not hold."""

    part: "Expression"


@dataclass(frozen=True)
class BoolOp:
    """Several of which all (`and`) or one (`or`) must hold."""

    joint: str
    parts: tuple["Expression", ...]


Expression = Condition | Not | BoolOp


def parse_filter(text: str, key: str = "action.where") -> Expression:
    """The expression that `text` says. Raises: ConfigError: one line that names the place where it cannot be read."""
    return _Parser(text, key).whole()


def list_columns(expression: Expression) -> list[str]:
    """Names of the columns that it asks, each once."""
    if isinstance(expression, Condition):
        return [expression.column]
    parts = (expression.part,) if isinstance(expression, Not) else expression.parts
    return list(dict.fromkeys(name for part in parts for name in list_columns(part)))


def list_conditions(expression: Expression) -> list[Condition]:
    """Every condition in it."""
    if isinstance(expression, Condition):
        return [expression]
    parts = (expression.part,) if isinstance(expression, Not) else expression.parts
    return [one for part in parts for one in list_conditions(part)]


@dataclass(frozen=True)
class _Token:
    kind: str  # quoted, sign, word; end
    text: str
    at: int


class _Parser:
    def __init__(self, text: str, key: str) -> None:
        self.text, self.key, self.place, self.depth = text, key, 0, 0
        self.tokens = self._tokens()

    def whole(self) -> Expression:
        found = self._parse_or()
        if self._peek_token().kind != "end":
            self._raise_here("here `and` or `or` is expected, or the end")
        return found

    def _tokens(self) -> list[_Token]:
        found, at = [], 0
        while self.text[at:].strip():
            match = TOKEN.match(self.text, at)
            if match is None:
                at += len(self.text[at:]) - len(self.text[at:].lstrip())
                self._fail(at, "a quote that is not closed" if self.text[at] in "'\"" else "no sign of this language")
            kind = str(match.lastgroup)
            found.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*found, _Token("end", "", len(self.text.rstrip()))]

    def _peek_token(self) -> _Token:
        return self.tokens[self.place]

    def _next(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def _accept_word(self, word: str) -> bool:
        """Whether this joint or sign comes now; it is passed then."""
        now = self._peek_token()
        if now.kind == "quoted" or now.text.lower() != word:
            return False
        self.place += 1
        return True

    def _parse_or(self) -> Expression:
        return self._parse_series("or", self._parse_and)

    def _parse_and(self) -> Expression:
        return self._parse_series("and", self._parse_not)

    def _parse_series(self, joint: str, one: Callable[[], Expression]) -> Expression:
        parts = [one()]
        while self._accept_word(joint):
            parts.append(one())
        return parts[0] if len(parts) == 1 else BoolOp(joint, tuple(parts))

    def _parse_not(self) -> Expression:
        if self._accept_word("not"):
            return self._parse_nested(lambda: Not(self._parse_not()))
        if self._accept_word("("):
            return self._parse_nested(self._closed)
        return self._parse_condition()

    def _parse_nested(self, inside: Callable[[], Expression]) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._raise_here(f"more than {MAX_DEPTH} parentheses within each other")
        found: Expression = inside()
        self.depth -= 1
        return found

    def _closed(self) -> Expression:
        found = self._parse_or()
        if not self._accept_word(")"):
            self._raise_here("here `and`, `or` or a closing parenthesis is expected")
        return found

    def _parse_condition(self) -> Expression:
        if (
            self._peek_token().kind == "sign"
            or self._peek_token().kind == "end"
            or self._peek_token().text.lower() in BOOL_OPERATORS
        ):
            self._raise_here("here a column is expected, such as task=sms_spam")
        column = _unquote_token(self._next())
        if self._peek_token().kind != "sign" or self._peek_token().text in "()":
            self._raise_here(f"after {column} one of {' '.join(OPERATORS)} is expected")
        operator = self._next().text.replace("==", "=")
        if self._peek_token().kind not in ("word", "quoted"):
            self._raise_here(f"after {column}{operator} a value is expected; one with spaces or signs in quotes")
        value = self._next()
        return Condition(column, operator, _unquote_token(value), value.kind == "quoted")

    def _raise_here(self, what: str) -> NoReturn:
        self._fail(self._peek_token().at, what)

    def _fail(self, at: int, what: str) -> NoReturn:
        left, right = self.text[:at].rstrip(), self.text[at:]
        shown = " ".join(f"{what}: {left[-30:]} ⟨here⟩ {right[:30]}".split())
        raise ConfigError(f"{self.key}: {shown}; type {self.key}='task=sms_spam and lora.r>=8'")


def _unquote_token(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "quoted" else token.text

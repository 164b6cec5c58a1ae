"""The language of `where`: conditions on columns, joined by and, or, not and parentheses. Nothing of it is executed.

task=sms_spam and (lora.r>=8 or method=dora) and not exact_match<0.9 and date>=2026-11-01
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from peftrun.errors import ConfigError

OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
JOINTS = ("and", "or", "not")
DEEPEST = 50  # parentheses and nots within each other
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
class Joined:
    """Several of which all (`and`) or one (`or`) must hold."""

    joint: str
    parts: tuple["Expression", ...]


Expression = Condition | Not | Joined


def parsed(text: str, key: str = "action.where") -> Expression:
    """The expression that `text` says. Raises: ConfigError: one line that names the place where it cannot be read."""
    return _Parser(text, key).whole()


def columns(expression: Expression) -> list[str]:
    """Names of the columns that it asks, each once."""
    if isinstance(expression, Condition):
        return [expression.column]
    parts = (expression.part,) if isinstance(expression, Not) else expression.parts
    return list(dict.fromkeys(name for part in parts for name in columns(part)))


def conditions(expression: Expression) -> list[Condition]:
    """Every condition in it."""
    if isinstance(expression, Condition):
        return [expression]
    parts = (expression.part,) if isinstance(expression, Not) else expression.parts
    return [one for part in parts for one in conditions(part)]


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
        found = self._or()
        if self._now().kind != "end":
            self._refuse("here `and` or `or` is expected, or the end")
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

    def _now(self) -> _Token:
        return self.tokens[self.place]

    def _next(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def _is(self, word: str) -> bool:
        """Whether this joint or sign comes now; it is passed then."""
        now = self._now()
        if now.kind == "quoted" or now.text.lower() != word:
            return False
        self.place += 1
        return True

    def _or(self) -> Expression:
        return self._series("or", self._and)

    def _and(self) -> Expression:
        return self._series("and", self._not)

    def _series(self, joint: str, one: Callable[[], Expression]) -> Expression:
        parts = [one()]
        while self._is(joint):
            parts.append(one())
        return parts[0] if len(parts) == 1 else Joined(joint, tuple(parts))

    def _not(self) -> Expression:
        if self._is("not"):
            return self._deeper(lambda: Not(self._not()))
        if self._is("("):
            return self._deeper(self._closed)
        return self._condition()

    def _deeper(self, inside: Callable[[], Expression]) -> Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse(f"more than {DEEPEST} parentheses within each other")
        found: Expression = inside()
        self.depth -= 1
        return found

    def _closed(self) -> Expression:
        found = self._or()
        if not self._is(")"):
            self._refuse("here `and`, `or` or a closing parenthesis is expected")
        return found

    def _condition(self) -> Expression:
        if self._now().kind == "sign" or self._now().kind == "end" or self._now().text.lower() in JOINTS:
            self._refuse("here a column is expected, such as task=sms_spam")
        column = _plain(self._next())
        if self._now().kind != "sign" or self._now().text in "()":
            self._refuse(f"after {column} one of {' '.join(OPERATORS)} is expected")
        operator = self._next().text.replace("==", "=")
        if self._now().kind not in ("word", "quoted"):
            self._refuse(f"after {column}{operator} a value is expected; one with spaces or signs in quotes")
        value = self._next()
        return Condition(column, operator, _plain(value), value.kind == "quoted")

    def _refuse(self, what: str) -> NoReturn:
        self._fail(self._now().at, what)

    def _fail(self, at: int, what: str) -> NoReturn:
        left, right = self.text[:at].rstrip(), self.text[at:]
        shown = " ".join(f"{what}: {left[-30:]} ⟨here⟩ {right[:30]}".split())
        raise ConfigError(f"{self.key}: {shown}; type {self.key}='task=sms_spam and lora.r>=8'")


def _plain(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "quoted" else token.text

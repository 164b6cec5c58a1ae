"""Parser of `where` filters: conditions on columns, combined by and, or, not and parentheses. Nothing is evaluated as code.

task=sms_spam and (lora.r>=8 or method=dora) and not exact_match<0.9 and date>=2026-11-01

It is in this package since `checks` parses filters before `results.catalog` evaluates them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from peftrun.errors import ConfigError

OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
BOOL_OPERATORS = ("and", "or", "not")
MAX_DEPTH = 50  # of nested parentheses and nots; bounds the recursion
TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign><=|>=|!=|==|[=<>~()])|(?P<word>[^\s=<>~()!"']+))""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Condition:
    """A column, one of `OPERATORS`, and a value as typed. `quoted`: `null` and `true` are then plain text."""

    column: str
    operator: str
    value: str
    quoted: bool = False


@dataclass(frozen=True)
class Not:
    """Negation of `part`."""

    part: "Expression"


@dataclass(frozen=True)
class BoolOp:
    """Expressions of which all (`joint` is `and`) or at least one (`or`) must hold."""

    joint: str
    parts: tuple["Expression", ...]


Expression = Condition | Not | BoolOp


def parse_filter(text: str, key: str = "action.where") -> Expression:
    """The expression tree of `text`. Raises: ConfigError: a syntax error, with its position."""
    return _Parser(text, key).parse()


def list_columns(expression: Expression) -> list[str]:
    """Names of its columns, each once, in order of appearance."""
    return list(dict.fromkeys(condition.column for condition in list_conditions(expression)))


def list_conditions(expression: Expression) -> list[Condition]:
    """All its conditions, in order of appearance."""
    if isinstance(expression, Condition):
        return [expression]
    parts = (expression.part,) if isinstance(expression, Not) else expression.parts
    return [condition for part in parts for condition in list_conditions(part)]


@dataclass(frozen=True)
class _Token:
    kind: str  # quoted, sign, word; end
    text: str
    position: int  # in the filter's text


class _Parser:
    """Recursive descent: `or` of `and`s of `not`s; each method consumes the tokens of what it returns."""

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key, self.index, self.depth = text, key, 0, 0
        self.tokens = self._tokenize()

    def parse(self) -> Expression:
        expression = self._parse_or()
        if self._peek_token().kind != "end":
            self._raise_here("here `and` or `or` is expected, or the end")
        return expression

    def _tokenize(self) -> list[_Token]:
        tokens, position = [], 0
        while self.text[position:].strip():
            match = TOKEN.match(self.text, position)
            if match is None:
                position += len(self.text[position:]) - len(self.text[position:].lstrip())
                quote = self.text[position] in "'\""
                self._raise_at(position, "a quote that is not closed" if quote else "no sign of this language")
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            position = match.end()
        return [*tokens, _Token("end", "", len(self.text.rstrip()))]

    def _peek_token(self) -> _Token:
        return self.tokens[self.index]

    def _next_token(self) -> _Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def _accept_word(self, word: str) -> bool:
        """Whether the next token is this operator or sign, which is then consumed."""
        token = self._peek_token()
        if token.kind == "quoted" or token.text.lower() != word:
            return False
        self.index += 1
        return True

    def _parse_or(self) -> Expression:
        return self._parse_series("or", lambda: self._parse_series("and", self._parse_not))

    def _parse_series(self, joint: str, parse_part: Callable[[], Expression]) -> Expression:
        parts = [parse_part()]
        while self._accept_word(joint):
            parts.append(parse_part())
        return parts[0] if len(parts) == 1 else BoolOp(joint, tuple(parts))

    def _parse_not(self) -> Expression:
        if self._accept_word("not"):
            return self._parse_nested(lambda: Not(self._parse_not()))
        if self._accept_word("("):
            return self._parse_nested(self._parse_closed)
        return self._parse_condition()

    def _parse_nested(self, parse_inner: Callable[[], Expression]) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._raise_here(f"more than {MAX_DEPTH} parentheses within each other")
        expression = parse_inner()
        self.depth -= 1
        return expression

    def _parse_closed(self) -> Expression:
        expression = self._parse_or()
        if not self._accept_word(")"):
            self._raise_here("here `and`, `or` or a closing parenthesis is expected")
        return expression

    def _parse_condition(self) -> Expression:
        token = self._peek_token()
        if token.kind in ("sign", "end") or token.text.lower() in BOOL_OPERATORS:
            self._raise_here("here a column is expected, such as task=sms_spam")
        column = _unquote_token(self._next_token())
        if self._peek_token().kind != "sign" or self._peek_token().text in "()":
            self._raise_here(f"after {column} one of {' '.join(OPERATORS)} is expected")
        operator = self._next_token().text.replace("==", "=")
        if self._peek_token().kind not in ("word", "quoted"):
            self._raise_here(f"after {column}{operator} a value is expected; one with spaces or signs in quotes")
        value = self._next_token()
        return Condition(column, operator, _unquote_token(value), value.kind == "quoted")

    def _raise_here(self, problem: str) -> NoReturn:
        self._raise_at(self._peek_token().position, problem)

    def _raise_at(self, position: int, problem: str) -> NoReturn:
        left, right = self.text[:position].rstrip(), self.text[position:]
        excerpt = " ".join(f"{problem}: {left[-30:]} ⟨here⟩ {right[:30]}".split())
        raise ConfigError(f"{self.key}: {excerpt}; type {self.key}='task=sms_spam and lora.r>=8'")


def _unquote_token(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "quoted" else token.text

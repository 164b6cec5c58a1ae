"""What is given, and answers to it: rows of preferences and rewards."""

from collections.abc import Callable
from typing import Any

from peftrun import console
from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks.messages import Talk, messages_of
from peftrun.tasks.templates import fill


def given_of(where: str, row: dict[str, Any], task: TaskSpec) -> Talk:
    """What an answer answers: the talk in column `task.messages`, or `task.prompt` filled in.

    Raises: DataError: a column is empty, or holds no talk.
    """
    system = (("system", task.system),) if task.system else ()
    if task.messages is None:
        return (*system, ("user", fill(where, task.prompt, row) or ""))
    talk = messages_of(where, row[task.messages], task.messages)
    if talk[-1][0] == "assistant":
        raise DataError(
            f"{where}: column {task.messages} ends with an answer; it must end with what is answered: mend or remove the row"
        )
    return (*system, *talk)


def answer_of(where: str, row: dict[str, Any], column: str) -> str:
    """An answer from a column: a text, a message, or a talk whose last message is the answer.

    Raises: DataError: it is empty.
    """
    found = row[column]
    if isinstance(found, dict):
        found = [found]
    text = found if isinstance(found, str) else messages_of(where, found, column)[-1][1]
    if not text.strip():
        raise DataError(f"{where}: column {column} is empty; fill it or remove the row")
    return text


def conversational(tokenizer: Any, given: Talk, answers: dict[str, str], *, apart: bool = True) -> dict[str, Any]:
    """A row as TRL takes it: messages where the model has a chat template, else texts.

    Args: apart: the prompt in a column of its own; else in front of each answer.
    """
    if not tokenizer.chat_template:
        prompt: Any = "\n".join(content for _, content in given) + "\n"
        said: dict[str, Any] = dict(answers)
    else:
        prompt = [{"role": role, "content": content} for role, content in given]
        said = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
    return {"prompt": prompt, **said} if apart else {key: prompt + text for key, text in said.items()}


def kept(rows: list[Any], length: Callable[[Any], int], task: TaskSpec, which: str) -> list[Any]:
    """Those no longer than `task.max_length` tokens; how many are left out is said aloud.

    Raises: DataError: none is left.
    """
    found = [row for row in rows if length(row) <= task.max_length]
    if not found:
        shortest = min(map(length, rows))
        raise DataError(
            f"task.max_length={task.max_length}: every one of the {len(rows)} {which} rows is longer "
            f"(the shortest has {shortest} tokens); type task.max_length={2 ** max(shortest - 1, 1).bit_length()}"
        )
    if len(found) < len(rows):
        console.say(
            f"data: {len(rows) - len(found)} of {len(rows)} {which} rows are longer than {task.max_length} tokens, left out"
        )
    return found

"""Many small cases in one test: one id in the report, each case in a folder of its own, and every case that fails is named."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peftrun.errors import ConfigError

REST = pytest.param("rest", marks=pytest.mark.slow)


NOT_INSTALLED = "this package is not installed"


@contextmanager
def where_installed() -> Iterator[None]:
    """Skips a case that is refused for nothing but packages that are not here: `make test-all` has them all."""
    try:
        yield
    except ConfigError as refused:
        if not all(NOT_INSTALLED in line for line in refused.lines):
            raise
        pytest.skip(refused.lines[0])


def cases(
    names: str, values: Iterable[Any], ids: Callable[[Any], object] = str, every: int = 1
) -> Callable[[Callable], Callable]:
    """Like `pytest.mark.parametrize`, but all cases are one test.

    Fixtures are set up once for all of them. What differs is the current folder, which `tmp_path` names too: it is new and
    empty for each case, and what a case sets by `monkeypatch` ends with it.

    Args: names: of the arguments that a case sets, apart by commas. values: one a case, or a tuple where there are several
        names. ids: what a failing case is called. every: of so many cases `make test` runs the first, `make test-all` the rest.
    """
    arguments, listed = [name.strip() for name in names.split(",")], list(values)
    shares = {"some": listed[::every], "rest": [value for place, value in enumerate(listed) if place % every]}

    def decorate(test: Callable) -> Callable:
        fixtures = [name for name in inspect.signature(test).parameters if name not in arguments]
        apart = bool({"cli", "tmp_path"} & set(fixtures))

        def run_cases(subtests: pytest.Subtests, tmp_path: Path, share: str = "some", **given: Any) -> None:
            assert shares[share], "no cases"
            for number, value in enumerate(shares[share]):
                case = dict(zip(arguments, value if len(arguments) > 1 else [value], strict=True))
                folder = tmp_path / f"case{number}"
                with subtests.test(str(ids(value))[:80]), pytest.MonkeyPatch.context() as patch:
                    if apart:
                        folder.mkdir()
                        patch.chdir(folder)
                    own = {"tmp_path": folder, "monkeypatch": patch, "subtests": subtests}
                    test(**case, **{name: own.get(name, given.get(name)) for name in fixtures})

        wanted = dict.fromkeys(["subtests", "tmp_path", *fixtures, *(["share"] if every > 1 else [])])
        wanted.pop("monkeypatch", None)
        run_cases.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in wanted]
        )
        run_cases.__name__, run_cases.__doc__, run_cases.__module__ = test.__name__, test.__doc__, test.__module__
        run_cases.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("share", ["some", REST])(run_cases) if every > 1 else run_cases

    return decorate

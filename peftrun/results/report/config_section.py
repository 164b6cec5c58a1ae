"""What a run was asked for: what differs from the defaults, the whole config, and the commands that make it again. Light."""

import json
import shlex
from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from peftrun.composition import compose
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config_tools import minimal_overrides
from peftrun.console import short
from peftrun.errors import ConfigError
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, Values, listed

MOST = 60  # values that differ and are shown; a run of another option may differ in all of a group


def section(run: RunFacts) -> Iterator[str]:
    """Commands, what differs, and every value."""
    if not run.values:
        return
    changed = {key: pair for key, pair in differing(run).items() if key != "action.resume"}
    yield "<h2>What was asked for</h2>"
    yield "<p>To run its record again and compare what comes out (a click selects the whole command):</p>"
    yield html.command(f"peftrun action=replay run={shlex.quote(short(run.folder))}")
    if run.choices:
        yield f"<p>To train the same in a new run folder:</p>{html.command(command(run))}"
    if changed:
        yield f"<h3>{len(changed)} {'value differs' if len(changed) == 1 else 'values differ'} from the defaults</h3>"
        rows = [[_key(key), _value(value), _value(usual)] for key, (usual, value) in changed.items()]
        yield html.table("What differs", ["key", "here", "default"], rows[:MOST])
        if rows[MOST:]:
            yield html.fold(f"{len(rows) - MOST} more", html.table("More", ["key", "here", "default"], rows[MOST:]))
    else:
        yield '<p class="soft">Every value is the default.</p>'
    yield html.fold("The whole config", _whole(run, set(changed)))


def command(run: RunFacts) -> str:
    """What was typed, as a command line; where the run was continued, without that."""
    typed = [text for text in run.typed if not text.startswith(("action.resume=", "hydra"))]
    return override_syntax.command(typed, run.places)


def differing(run: RunFacts) -> dict[str, tuple[Any, Any]]:
    """Full key → value by default, value of this run; nothing where the defaults cannot be composed here."""
    try:
        return minimal_overrides.differing(_defaults(), run.values)
    except (*compose.REFUSALS, ConfigError):
        return {}


@cache
def _defaults() -> Values:
    """What is composed where nothing is typed: the same for all cells of a sweep."""
    return config.plain(compose.compose_run([]).cfg)


def _whole(run: RunFacts, changed: set[str]) -> str:
    unread = set(map(str, listed(run.record, "unread")))
    rows = [
        [
            _key(key, "changed" if key in changed else ""),
            _value(value),
            html.cell("not read" if key in unread else "", "soft"),
        ]
        for key, value in config.flatten(run.values).items()
    ]
    told = '<p class="soft">Marked: what differs from the defaults. Not read: what meant nothing in this run.</p>'
    return told + html.table("Config", ["key", "value", ""], rows)


def _key(key: str, css: str = "") -> str:
    mark = '<span class="mark" title="differs from the default">●</span> ' if css else ""
    return f'<td class="name {css}">{mark}<code>{escape(key)}</code></td>'


def _value(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f'<td class="set"><code>{escape(said)}</code></td>'

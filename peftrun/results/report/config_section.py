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
from peftrun.console import shorten_path
from peftrun.errors import ConfigError
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, Values, get_list

MOST = 60  # values that differ and are shown; a run of another option may differ in all of a group


def render_config(run: RunFacts) -> Iterator[str]:
    """Commands, what differs, and every value."""
    if not run.values:
        return
    changed = {key: pair for key, pair in find_changed_values(run).items() if key != "action.resume"}
    yield "<h2>What was asked for</h2>"
    yield "<p>To run its record again and compare what comes out (a click selects the whole command):</p>"
    yield html.render_command(f"peftrun action=replay run={shlex.quote(shorten_path(run.folder))}")
    if run.choices:
        yield f"<p>To train the same in a new run folder:</p>{html.render_command(build_command(run))}"
    if changed:
        yield f"<h3>{len(changed)} {'value differs' if len(changed) == 1 else 'values differ'} from the defaults</h3>"
        rows = [
            [_render_key(key), _render_value(value), _render_value(usual)] for key, (usual, value) in changed.items()
        ]
        yield html.render_table("What differs", ["key", "here", "default"], rows[:MOST])
        if rows[MOST:]:
            yield html.render_details(
                f"{len(rows) - MOST} more", html.render_table("More", ["key", "here", "default"], rows[MOST:])
            )
    else:
        yield '<p class="soft">Every value is the default.</p>'
    yield html.render_details("The whole config", _render_config_table(run, set(changed)))


def build_command(run: RunFacts) -> str:
    """What was typed, as a command line; where the run was continued, without that."""
    typed = [text for text in run.typed if not text.startswith(("action.resume=", "hydra"))]
    return override_syntax.format_shell_command(typed, run.places)


def find_changed_values(run: RunFacts) -> dict[str, tuple[Any, Any]]:
    """Full key → value by default, value of this run; nothing where the defaults cannot be composed here."""
    try:
        return minimal_overrides.diff_values(_compose_defaults(), run.values)
    except (*compose.REFUSALS, ConfigError):
        return {}


@cache
def _compose_defaults() -> Values:
    """What is composed where nothing is typed: the same for all cells of a sweep."""
    return config.resolve_values(compose.compose_run([]).cfg)


def _render_config_table(run: RunFacts, changed: set[str]) -> str:
    unread = set(map(str, get_list(run.record, "unread")))
    rows = [
        [
            _render_key(key, "changed" if key in changed else ""),
            _render_value(value),
            html.render_cell("not read" if key in unread else "", "soft"),
        ]
        for key, value in config.flatten_keys(run.values).items()
    ]
    told = '<p class="soft">Marked: what differs from the defaults. Not read: what meant nothing in this run.</p>'
    return told + html.render_table("Config", ["key", "value", ""], rows)


def _render_key(key: str, css: str = "") -> str:
    mark = '<span class="mark" title="differs from the default">●</span> ' if css else ""
    return f'<td class="name {css}">{mark}<code>{escape(key)}</code></td>'


def _render_value(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f'<td class="set"><code>{escape(said)}</code></td>'

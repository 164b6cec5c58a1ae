"""The config of a run: differences from the defaults, all values, and the commands that repeat it. Light."""

import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.composition import compose
from peftrun.composition.spec import get_default_values
from peftrun.config import migrations, override_syntax
from peftrun.config import values as config
from peftrun.config_tools import minimal_overrides
from peftrun.console import shorten_path
from peftrun.errors import ConfigError
from peftrun.formatting import format_value
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_list

MAX_ROWS = 60  # differing values in sight; another option may differ in every key of its group


def render_config(run: RunFacts) -> Iterator[str]:
    """Commands, differences, and every value."""
    if not run.values:
        return
    changed = {key: pair for key, pair in find_changed_values(run).items() if key != "action.resume"}
    yield "<h2>Configuration</h2>"
    yield "<p>To run its record again and compare what comes out (a click selects the whole command):</p>"
    yield html.render_command(f"peftrun action=replay run={shlex.quote(shorten_path(run.folder))}")
    if run.choices:
        yield f"<p>To train the same in a new run folder:</p>{html.render_command(build_command(run))}"
    if changed:
        yield f"<h3>{len(changed)} {'value differs' if len(changed) == 1 else 'values differ'} from the defaults</h3>"
        rows = [
            [_render_key(key), _render_value(value), _render_value(default)]
            for key, (default, value) in changed.items()
        ]
        yield html.render_table("What differs", ["key", "here", "default"], rows[:MAX_ROWS])
        if rows[MAX_ROWS:]:
            yield html.render_details(
                f"{len(rows) - MAX_ROWS} more", html.render_table("More", ["key", "here", "default"], rows[MAX_ROWS:])
            )
    else:
        yield '<p class="soft">Every value is the default.</p>'
    unused_keys = {migrations.rename_key(str(key))[0] for key in get_list(run.record, "unused_keys")}
    all_rows = [
        [
            _render_key(key, "changed" if key in changed else ""),
            _render_value(value),
            html.render_cell("unused" if key in unused_keys else "", "soft"),
        ]
        for key, value in config.flatten_keys(run.values).items()
    ]
    legend = '<p class="soft">Marked: differs from the default. Unused: had no effect in this run.</p>'
    table = html.render_table("Config", ["key", "value", ""], all_rows)
    yield html.render_details("The whole config", legend + table)


def build_command(run: RunFacts) -> str:
    """The command line as typed, without what continued an earlier run."""
    overrides = [text for text in run.typed if not text.startswith(("action.resume=", "hydra"))]
    return override_syntax.format_shell_command(overrides, run.places)


def find_changed_values(run: RunFacts) -> dict[str, tuple[Any, Any]]:
    """Full key → (default, value of this run); empty if the defaults cannot be composed here."""
    try:
        return minimal_overrides.diff_values(get_default_values(), run.values)
    except (*compose.REFUSALS, ConfigError):
        return {}


def _render_key(key: str, css: str = "") -> str:
    mark = '<span class="mark" title="differs from the default">●</span> ' if css else ""
    return f'<td class="name {css}">{mark}<code>{escape(key)}</code></td>'


def _render_value(value: Any) -> str:
    return f'<td class="set"><code>{escape(format_value(value))}</code></td>'

"""Renders the report of one model, or of two versions side by side, as one HTML file that needs nothing else.

The page contains the plotting library (vega.js, made by `make charts`), so it works without a network. Equal reports
give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.evidence.uncertainty import speed
from onward.registry.report.charts import Chart
from onward.registry.report.material import Material
from onward.registry.report.sections import SHADE_NAMES, Fact, Sections
from onward.registry.report.variants import STATES
from onward.registry.report.wording import counted, milliseconds
from onward.registry.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Difference:
    """A figure of two versions: its name, both values, and the change."""

    name: str
    left: str
    right: str
    change: str

    @property
    def differs(self) -> bool:
        """Whether the two values differ."""
        return self.left != self.right


def render(material: Material) -> str:
    """Render the report of one model.

    Args:
        material: What it is made of.

    Returns:
        The HTML.
    """
    return _render([Sections(material)])


def render_comparison(left: Material, right: Material) -> str:
    """Render two versions side by side.

    Args:
        left: The first version.
        right: The second version.

    Returns:
        The HTML.
    """
    return _render([Sections(left, "a"), Sections(right, "b")])


def environment() -> Environment:
    """The environment of the page templates. It escapes all values, and refuses undefined names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters |= {"counted": counted, "milliseconds": milliseconds, "speed": speed}
    return made


def _render(sides: Sequence[Sections]) -> str:
    compared = len(sides) > 1
    specs = {f"{side.key}-{chart.key}": chart.spec for side in sides for chart in _charts(side)}
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            sides=sides,
            compared=compared,
            title=" and ".join(side.title for side in sides),
            differences=differences(*sides) if compared else [],
            other_host=compared and _processor(sides[0]) != _processor(sides[1]),
            states=STATES,
            shades=list(enumerate(SHADE_NAMES)),
            style=verbatim("page.css"),
            script=verbatim("page.js"),
            library=verbatim("vega.js"),
            specs=to_json(specs),
        )
    )


def differences(left: Sections, right: Sections) -> list[Difference]:
    """Compare the figures of two versions.

    Args:
        left: The first version.
        right: The second version.

    Returns:
        One difference for each figure that one of them has, in the order of the report.
    """
    sides = [_by_name(side.figures) for side in (left, right)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return [
        Difference(name, _value(sides[0].get(name)), _value(sides[1].get(name)), _change(*(s.get(name) for s in sides)))
        for name in names
    ]


def _by_name(facts: Sequence[Fact]) -> dict[str, Fact]:
    """The facts by name; later ones of the same name get a number."""
    found: dict[str, Fact] = {}
    for fact in facts:
        place, name = 1, fact.name
        while name in found:
            place += 1
            name = f"{fact.name} {place}"
        found[name] = fact
    return found


def _value(fact: Fact | None) -> str:
    return fact.value if fact else "-"


def _change(left: Fact | None, right: Fact | None) -> str:
    """The relative change; the difference where the first value is 0; "" if they are equal or not numbers."""
    if left is None or right is None or left.amount is None or right.amount is None or left.amount == right.amount:
        return ""
    if left.amount <= 0 or right.amount <= 0:
        return f"{right.amount - left.amount:+.3g}"
    return f"{right.amount / left.amount - 1:+.1%}"


def _processor(side: Sections) -> str:
    machine = side.evidence.benchmark.machine
    return machine.cpu if machine else ""


def _charts(side: Sections) -> list[Chart]:
    return [
        *([side.tradeoff] if side.tradeoff else []), *side.latency, *side.scenarios, *side.sensitivity,
    ]  # fmt: skip


def _finalize(value: Any) -> Any:
    """Escape control characters in all texts. `Markup` comes from the template itself."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(" ".join(value.splitlines()))
    return value


def verbatim(name: str) -> Any:
    """A file of this package as it is: a style or a script, which the template must not escape.

    Args:
        name: The file's name.
    """
    from markupsafe import Markup

    return Markup((_FOLDER / name).read_text(encoding="utf-8"))  # a file of this package


def to_json(value: Any) -> Any:
    """JSON for the inside of a <script> element: no character in it ends the element or begins a comment.

    Args:
        value: The value.
    """
    from markupsafe import Markup

    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def finite(value: Any) -> Any:
    """Replace numbers that JSON lacks by null.

    Args:
        value: A value of lists, dictionaries, numbers and texts.
    """
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Commands that show the evidence of a model: a report as an HTML page, and the table of its variants.

registry/cli/main.py adds them to the `onward` command.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onward.registry.cli.output import Json, print_json, say
from onward.registry.errors import UsageError
from onward.registry.text import printable

if TYPE_CHECKING:
    from onward.registry.evidence.records import Ratio
    from onward.registry.evidence.reports import Report
    from onward.registry.report.variants import VariantRow

EVIDENCE = "MODEL for the newest reports in this checkout, MODEL/VERSION, or MODEL@ENVIRONMENT."
# The width of a table if the output is not a terminal.
WIDTH = 80
_GAP = "  "


def report(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET...", help=EVIDENCE)],
    compare: Annotated[bool, typer.Option("--compare", help="Show two targets side by side.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write. Default: report-TARGET.html, here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a report of a model as one HTML file, which works without a network.

    The report has the verdict, charts of latency, quality and size, the reason for every variant, parity, operators,
    inputs and outputs, gates, and where everything comes from. The pipeline writes the same page to
    build/MODEL/publish/report.html, and records it in MLflow.

    Example: onward report cnn@production -o cnn.html
    """
    from onward.registry.files import write_atomically
    from onward.registry.report import source
    from onward.registry.report.page import render, render_comparison

    if len(targets) != (2 if compare else 1):
        wanted = "two targets with --compare" if compare else "one target, or two with --compare"
        raise UsageError(f"{len(targets)} targets: give {wanted}, such as cnn@staging cnn@production")
    materials = [source.find(target) for target in targets]
    page = render_comparison(*materials) if compare else render(materials[0])
    name = re.sub(r"[^\w@.-]+", "-", "-".join(targets))
    path = output or Path(f"report-{name}.html")
    try:
        write_atomically(path, page.encode())
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"--output {path}: {error.strerror}") from None
    if as_json:
        print_json({"file": str(path.resolve()), "targets": targets, "bytes": len(page.encode())})
    else:
        say(path)


def variants(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=EVIDENCE)],
    as_json: Json = False,
) -> None:
    """Show all variants of a model: speed, quality, size, and why each one was chosen or not.

    A speed is relative to the plain export. A wide interval is written out: "about 4 (2 to 9)". Variants are tied if
    their intervals overlap with that of the chosen one, so that another run may choose differently.

    Example: onward variants cnn
    """
    from onward.registry.report import source
    from onward.registry.report.variants import variant_rows

    rows = variant_rows(source.find(target).evidence)
    if as_json:
        print_json([variant_facts(row) for row in rows])
    else:
        print_variants(rows)


def print_variants_of(report: Report, path: Path) -> None:
    """Print the variants of a report of `benchmark` or `select`; nothing for another report.

    Args:
        report: the report.
        path: its file. The reports of the other stages are read if they are in their folders beside it.
    """
    from onward.registry.report.material import in_build, read_material
    from onward.registry.report.variants import variant_rows

    if report.stage not in ("benchmark", "select"):
        return
    paths = {**in_build(path.resolve().parent.parent), report.stage: path}
    rows = variant_rows(read_material(report.model, paths, None).evidence)
    if rows:
        say("")
        print_variants(rows)


def variant_facts(row: VariantRow) -> dict[str, Any]:
    """A variant as a JSON object.

    Args:
        row: the variant.
    """
    return {
        "variant": row.name,
        "runtime": row.runtime or None,
        "state": row.state,
        "reason": row.reason,
        "ratio": _ratio(row.ratio),
        "host_ratio": _ratio(row.compared),
        "screened": row.screened,
        "speed": row.speed or None,
        "quality": row.quality,
        "quality_drop": row.drop,
        "quality_budget": row.budget,
        "quality_measure": row.measure or None,
        "size_bytes": row.size_bytes,
        "p50_ms": row.p50_ms,
        "precision": row.precision or None,
        "technique": row.technique or None,
        "session_options": row.options or None,
        "on_front": row.on_front,
    }


def _ratio(ratio: Ratio | None) -> dict[str, float] | None:
    return None if ratio is None else ratio.model_dump()


def print_variants(rows: Sequence[VariantRow], width: int | None = None) -> None:
    """Print a table of variants, with the reason of each one below it.

    Columns that do not fit are left out, the least important first. Names are never shortened: one that is too long
    gets a line of its own.

    Args:
        rows: the variants.
        width: the width in characters; None for the terminal's, or 80 in a pipe.
    """
    if not rows:
        say("no variant was made")
        return
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    cells = [
        [printable(cell) for cell in (row.label, row.speed, row.quality_cell, row.size_text, row.used_text)]
        for row in rows
    ]
    header = ["variant", "x plain", "quality", "size", "budget used"]
    # A column without any value says nothing; a variant without figures needs no place in the columns.
    kept = [place for place in range(len(header)) if place == 0 or any(line[place] for line in cells)]
    # A name that leaves no room for the columns gets a line of its own.
    placed = [header, *(line for line in cells if any(line[1:]) and len(line[0]) <= max(20, width - 32))]
    placed += [["", *line[1:]] for line in cells]
    left_out: list[str] = []
    while len(kept) > 2 and _width(placed, kept) > width:
        left_out.insert(0, header[kept.pop()])
    widths = [max(len(line[place]) for line in placed) for place in kept]
    for row, line in zip((None, *rows), (header, *cells), strict=True):
        shown = list(line)
        if len(shown[0]) > widths[0]:
            say(shown[0])
            shown[0] = ""
        text = _GAP.join(shown[place].ljust(size) for place, size in zip(kept, widths, strict=True)).rstrip()
        if text:
            say(text)
        if row is not None:
            reason = printable(f"{row.state}: {row.reason}")
            say(*textwrap.wrap(reason, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    if left_out:
        say("", f"left out to fit {width} columns: {', '.join(left_out)}; --json prints everything")


def _width(lines: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    return sum(max(len(line[place]) for line in lines) for place in kept) + len(_GAP) * (len(kept) - 1)

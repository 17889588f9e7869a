"""Hooks of the documentation site (mkdocs.yml): pages from outside docs/, and the generated parts of the reference.

- benchmarks/*.md and CHANGELOG.md become pages, and links to them work in the repository and on the site.
- `<!-- generated: NAME -->` in a page is replaced by the text of GENERATED[NAME].
- `folder/*.md` in the navigation becomes a list of the pages in that folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"<!-- generated: (\w+) -->")
# Pages from outside docs/: their path in the repository, by their path on the site.
OUTSIDE = {
    **{f"benchmarks/{path.name}": path for path in sorted((ROOT / "benchmarks").glob("*.md"))},
    "changelog.md": ROOT / "CHANGELOG.md",
}


def on_config(config: Any) -> Any:
    """Replace `folder/*.md` in the navigation by the pages of the folder."""
    sys.path.insert(0, str(ROOT))  # the reference describes this checkout, wherever `onward` is installed from
    config.nav = [_listed(entry) for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    for place, path in OUTSIDE.items():
        files.append(File.generated(config, place, content=_for_the_site(path.read_text(), place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts, and correct links to pages from outside docs/."""
    text = MARKER.sub(lambda found: GENERATED[found[1]](), markdown)
    place = page.file.src_uri
    return text if place in OUTSIDE else _links_to_outside(text, depth=place.count("/"))


def _links_to_outside(text: str, depth: int) -> str:
    """On the site, benchmarks/ is inside docs/: one folder less to go up."""
    text = text.replace(f"]({'../' * (depth + 1)}benchmarks/", f"]({'../' * depth}benchmarks/")
    return text.replace(f"]({'../' * (depth + 1)}CHANGELOG.md", f"]({'../' * depth}changelog.md")


def _for_the_site(text: str, place: str) -> str:
    """Correct the links of a page that comes from outside docs/."""
    return re.sub(r"\]\((?:\.\./)?docs/", "](" + "../" * place.count("/"), text)


def _listed(entry: Any) -> Any:
    if isinstance(entry, dict):
        ((title, target),) = entry.items()
        if isinstance(target, list):
            return {title: [_listed(item) for item in target]}
        if target.endswith("/*.md"):
            return {title: _pages(target.removesuffix("/*.md"))}
    return entry


def _pages(folder: str) -> list[dict[str, str]]:
    inside = {f"{folder}/{path.name}": path for path in sorted((ROOT / "docs" / folder).glob("*.md"))}
    outside = {place: path for place, path in OUTSIDE.items() if place.startswith(f"{folder}/")}
    return [{_title(path): place} for place, path in (inside | outside).items()]


def _title(page: Path) -> str:
    return page.read_text().split("\n", 1)[0].lstrip("# ").replace("`", "")


def commands() -> str:
    """Return the reference of the command line, from the app's own help."""
    from typer.main import get_command

    from onward.cli import app

    return "\n".join(_command(get_command(app), "onward"))


def _command(command: Any, name: str) -> Iterable[str]:
    children = getattr(command, "commands", {})
    if name != "onward":
        yield f"## `{name}`\n"
        yield f"{_paragraphs(command.help or '')}\n"
    if not children or getattr(command, "invoke_without_command", False):
        yield from _parameters(command)
    for child, found in children.items():
        yield from _command(found, f"{name} {child}")


def _paragraphs(text: str) -> str:
    """Format a help text: an example becomes a block of code."""
    text = re.sub(r"^Example: (.*)$", r"```text\n\1\n```", text.strip(), flags=re.M)
    return re.sub(r"(?<![`\w])--[a-z-]+", r"`\g<0>`", text)


def _parameters(command: Any) -> Iterable[str]:
    rows = []
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or parameter.name.upper()
        else:
            value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
            shown = ", ".join([*parameter.opts, *parameter.secondary_opts]) + value
        default = "" if parameter.default in (None, False) or parameter.required else f"`{parameter.default}`"
        rows.append(f"| `{shown}` | {_cell(parameter.help or '')} | {default} |")
    if rows:
        yield "\n".join(["| | meaning | default |", "|---|---|---|", *rows, ""])


def params_keys() -> str:
    """Return the reference of params.yaml, from the JSON Schema."""
    from onward.stages.config.json_schema import schema

    made = schema()
    return "\n".join(
        line
        for name, section in [("params.yaml", made), *made["$defs"].items()]
        if "properties" in section
        for line in _section(name.removesuffix("Keys"), section)
    )


def _section(name: str, section: dict[str, Any]) -> Iterable[str]:
    yield f"## {name}\n"
    if about := section.get("description"):
        yield f"{about}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key, value in section["properties"].items():
        is_shown = value.get("default") not in (None, "", [], {}) and not isinstance(value["default"], dict)
        default = f"`{value['default']}`" if is_shown else ""
        yield f"| `{key}` | {_type(value)} | {_cell(default)} | {_cell(value.get('description', ''))} |"
    yield ""


def _type(value: dict[str, Any]) -> str:
    """Describe a type of the JSON Schema in a few words."""
    if target := value.get("$ref"):
        name = target.rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if choices := value.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(choice) for choice in choices))
    if "const" in value or "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    kind = str(value.get("type", "any"))
    if kind == "array" and isinstance(value.get("items"), dict):
        return f"list of {_type(value['items'])}"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"mapping to {_type(value['additionalProperties'])}"
    return kind


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").strip()


GENERATED = {"commands": commands, "params_keys": params_keys}

"""The descriptions of deployment logs that MLflow shows: of one entry, and of a whole log as a history.

All text of users and models is escaped. Links are relative to MLflow's own page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onward.registry.evidence.metric_names import HEADLINE
from onward.registry.log.entries import Draft, Entry
from onward.registry.text import cut_after_line, markdown, markdown_table

# MLflow's limit for the descriptions of versions and models, in characters.
LONGEST = 5000
_NEWEST = 15
# The evidence that the page of an entry shows, in this order.
_EVIDENCE = ("variant", "runtime", "precision", *HEADLINE, "cpu")
_HEAD = "Onward's deployment log: each version is an entry. Do not delete versions."


def entry_page(entry: Draft, registered: str) -> str:
    """The description of an entry: the sentence of `onward history`, then what was deployed, and its gates.

    Args:
        entry: the entry.
        registered: the name of the log's registered model.
    """
    model = registered.partition(".")[2]
    rows = [
        ("candidate", f"[{markdown(model)} version {entry.candidate_version}]"
                      f"(#/models/{model}/versions/{entry.candidate_version})"),
        ("sha256", entry.sha256[:16]),
        ("at", markdown(entry.at)),
    ]  # fmt: skip
    if entry.base:
        rows.append(("before", f"[entry {entry.base}](#/models/{registered}/versions/{entry.base})"))
    if entry.restores:
        rows.append(("restores", f"[entry {entry.restores}](#/models/{registered}/versions/{entry.restores})"))
    rows += [(name, markdown(entry.evidence[name])) for name in _EVIDENCE if entry.evidence.get(name)]
    rows += [
        (markdown(f"gate {gate.requirement}"), f"{'met' if gate.met else '**not met**'}: {markdown(gate.detail)}")
        for gate in entry.gates
    ]
    return _cut(f"{markdown(entry)}\n\n" + markdown_table(("", ""), rows))


def history_page(model: str, registered: str, entries: Iterable[Entry], live: Entry | None) -> str:
    """The description of a log: what is live, and the newest entries that counted, the newest first.

    Args:
        model: the model's name.
        registered: the name of the log's registered model.
        entries: the entries that counted.
        live: the live entry; None if nothing is live.
    """
    newest = sorted(entries, key=lambda entry: -entry.number)[:_NEWEST]
    rows = [
        (
            f"[{entry.number}](#/models/{registered}/versions/{entry.number})" + (" (live)" if entry == live else ""),
            markdown(entry.at[:16].replace("T", " ")),
            markdown(entry.kind),
            f"[version {entry.candidate_version}](#/models/{model}/versions/{entry.candidate_version})",
            markdown(entry.evidence.get("variant", "")),
            markdown(entry.actor),
            markdown(entry.reason[:120]),
        )
        for entry in newest
    ]
    now = f"Live: version {live.candidate_version} since entry {live.number}." if live else "Nothing is live."
    table = markdown_table(("entry", "at", "what", "deployed", "variant", "who", "why"), rows)
    return _cut(f"{now} {_HEAD}\n\n{table}")


def copy_page(entry: Entry, model: str, registered: str) -> str:
    """The description of an environment's own copy of a version's files.

    Args:
        entry: the entry that deployed the copy.
        model: the model's name.
        registered: the name of the log's registered model.
    """
    return (
        f"The copy of [{markdown(model)} version {entry.candidate_version}]"
        f"(#/models/{model}/versions/{entry.candidate_version}) that [{markdown(registered)} entry {entry.number}]"
        f"(#/models/{registered}/versions/{entry.number}) deployed."
    )


def figures(evidence: Mapping[str, str]) -> dict[str, float]:
    """The headline metrics in a version's tags.

    Args:
        evidence: the tags.
    """
    found = {}
    for name in HEADLINE:
        try:
            found[name] = float(evidence[name])
        except (KeyError, ValueError):
            continue
    return found


def _cut(text: str) -> str:
    return cut_after_line(text, LONGEST, "\n...")

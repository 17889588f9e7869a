"""What a server found when it ran a candidate beside the live version on the same requests: evidence for a gate."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from onward.registry.evidence.records import OutputFidelity, Record

# The tag of a version with the evidence of one environment is "shadow.production".
PREFIX = "shadow."
# If none of 300 requests has a changed answer, the share of changed answers is below 1 % with 95 % confidence (the rule
# of three: J. Hanley and A. Lippman-Hand, If nothing goes wrong, is everything all right?, JAMA 249, 1983). 1 % is the
# default of budget.quality_drop.
MINIMUM = 300


class ShadowEvidence(Record):
    """A candidate, compared with the version that was live in an environment.

    Attributes:
        environment: The environment of the live version.
        version: The candidate's version.
        sha256: The digest of the candidate's model.
        manifest: The digest of all of its files; "" if it is not known.
        live_version: The live version.
        live_sha256: The digest of the live version's model.
        live_manifest: The digest of all of its files; "" if it is not known.
        requests: The number of requests that both versions computed.
        failed: How many of them failed on the candidate.
        samples: The number of samples whose answers were judged.
        agreement: The share of the live version's answers that the candidate keeps, 0 to 1, of the worst output.
        latency_ratio: The median of the candidate's run times over the live version's, in one thread, in turns.
        outputs: The judgement of each output, by the measures of its kind.
        began: When the comparison began, in ISO 8601.
        ended: When the last request was compared.
        host: The server's host.
    """

    environment: str
    version: str
    sha256: str
    manifest: str = ""
    live_version: str
    live_sha256: str
    live_manifest: str = ""
    requests: int
    failed: int
    samples: int
    agreement: float
    latency_ratio: float
    outputs: list[OutputFidelity] = []
    began: str
    ended: str
    host: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with the candidate's answers, one sentence each."""
        found = [f"{self.failed} requests failed on it"] if self.failed else []
        return found + [
            f"output {one.output}: {one.measure} {one.value:.3g}, {one.limit:g} allowed"
            for one in self.outputs
            if not one.holds
        ]


def read(tags: Mapping[str, str]) -> list[ShadowEvidence]:
    """The evidence in the tags of a version. Evidence that cannot be read is left out.

    Args:
        tags: the tags.
    """
    found = []
    for name in sorted(tags):
        if name.startswith(PREFIX):
            try:
                found.append(ShadowEvidence.model_validate_json(tags[name]))
            except ValidationError:  # a newer Onward wrote it
                continue
    return found

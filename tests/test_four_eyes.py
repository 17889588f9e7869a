"""Which second person must approve a promotion, by names alone and by keys."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.gates.four_eyes import ADVICE, judge
from onward.registry.log.entries import Entry, GateResult
from onward.registry.trust.entry_signatures import Signer

NOW = "2026-06-01T00:00:00+00:00"
NAMES = ("ann", "bob", "eve")
KEYS = {name: base64.b64encode(bytes([n + 1]) * 32).decode() for n, name in enumerate(NAMES)}
SIGNERS = {name: Signer(key=key) for name, key in KEYS.items()}


def approval(name: str) -> Entry:
    return Entry(
        number=1, kind="approve", key="k", base=0, sha256="0" * 64, candidate_version=1, source="approval:0",
        actor=name, signer=name, reason="because", at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def judged(publisher: str, promoter: str, *approvers: str, signers: Mapping[str, Signer] | None = None) -> GateResult:
    return judge(publisher, promoter, [approval(name) for name in approvers], signers or {}, NOW, "onward approve")


@given(st.sampled_from(["", *NAMES]), st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3))
def test_without_signers_two_different_names_are_required(publisher: str, promoter: str, approvers: list[str]) -> None:
    found = judged(publisher, promoter, *approvers)
    others = set(approvers) - {publisher, promoter}
    assert found.met == (bool(others) or publisher not in ("", promoter))
    assert found.detail.endswith(f" ({ADVICE})")


@given(
    st.sampled_from(["", "zoe", *NAMES]), st.sampled_from(NAMES), st.lists(st.sampled_from([*NAMES, "zoe"]), max_size=3)
)
def test_with_signers_promoter_and_approver_are_two_signers_other_than_the_publisher(
    publisher: str, promoter: str, approvers: list[str]
) -> None:
    found = judged(publisher, promoter, *approvers, signers=SIGNERS)
    assert found.met == bool((set(approvers) & SIGNERS.keys()) - {publisher, promoter})
    assert ADVICE not in found.detail


def test_two_names_with_the_same_key_count_as_one_person() -> None:
    signers = {**SIGNERS, "ann2": Signer(key=KEYS["ann"])}
    assert not judged("eve", "ann", "ann2", signers=signers).met
    assert not judged("ann", "bob", "ann2", signers=signers).met
    assert judged("ann2", "ann", "bob", signers=signers).met


def test_an_approval_by_a_departed_signer_does_not_count() -> None:
    for until, met in (("2026-05-31T23:59:59+00:00", False), (NOW, True), ("2027-01-01T00:00:00+00:00", True)):
        signers = {**SIGNERS, "bob": Signer(key=KEYS["bob"], until=until)}
        assert judged("eve", "ann", "bob", signers=signers).met == met
        assert judged("eve", "ann", "bob", "bob", signers=signers).met == met


@pytest.mark.parametrize(
    ("publisher", "signers", "detail"),
    [
        (
            "ann",
            {},
            "ann published it and ann promotes it: somebody else has to approve it first, `onward approve`, or",
        ),
        ("", {}, "ann promotes it: somebody else has to approve it first, `onward approve` ("),
        (
            "bob",
            SIGNERS,
            "bob published it and ann promotes it: somebody else has to approve it first, `onward approve`",
        ),
    ],
)
def test_the_detail_names_the_missing_approval_and_the_command(
    publisher: str, signers: dict[str, Signer], detail: str
) -> None:
    found = judged(publisher, "ann", signers=signers)
    assert (found.requirement, found.met) == ("four_eyes", False)
    assert found.detail.startswith(detail)
    assert ("or to promote it" in found.detail) == (publisher == "ann")


def test_each_approver_is_named_once() -> None:
    assert judged("", "ann", "bob", "eve", "bob", "ann").detail == f"approved by bob, eve ({ADVICE})"
    assert judged("", "ann", "eve", "bob", signers=SIGNERS).detail == "approved by eve, bob"
    assert judged("bob", "ann").detail == f"published by bob, promoted by ann ({ADVICE})"

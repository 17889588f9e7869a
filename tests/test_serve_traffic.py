"""Shadow, canary, refusals and the gate of the shadow: a real server on a real store."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.registry.artifact import replay
from onward.registry.errors import MachineFault, OnwardError, Refused, StoreUnreachable, UsageError
from onward.registry.evidence import shadow as evidence_of_shadow
from onward.registry.evidence.shadow import ShadowEvidence
from onward.registry.gates import shadow as gate
from onward.registry.gates.expectations import facts
from onward.registry.log.entries import Entry
from onward.registry.operations import overview, promotion
from onward.registry.serve import engine, following
from onward.registry.serve import shadow as shadows
from onward.registry.serve.canary import ErrorRule
from onward.registry.serve.candidates import canaries
from onward.registry.store import refused
from onward.registry.store.store import Store
from tests.store_factory import add_candidate, fresh_store, stage
from tests.test_serve import Client, Running, wait_for

PARAMS = """
environments:
  staging: {from: candidate, require: [parity]}
  production: {from: staging, require: [shadow], shadow_requests: 20}
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Versions 1, 2 and 3 of cnn, which multiply by n. Version 1 is live in production, version 2 in staging."""
    store = fresh_store(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.setenv("ONWARD_PARAMS", str(tmp_path / "params.yaml"))
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor)
    stage(store, 1)
    promotion.promote("cnn", "production", reason="because", store=store)
    stage(store, 2)
    monkeypatch.setattr(shadows, "JUDGE_S", 0.2)
    return store


def equal_version(store: Store) -> int:
    """Stage a version with other files, and the answers of version 1 within rounding."""
    number = add_candidate(store, "cnn", 1.0 + 1e-6)
    stage(store, number)
    return number


def ask_many(server: Running, count: int) -> list[tuple[int, Any]]:
    values = np.random.default_rng(0).standard_normal((count, 2, 4))
    return [server.client.infer(one) for one in values]


def events(server: Running) -> list[str]:
    return [event["kind"] for event in server.client.call("/v2/onward/events")[1]["cnn"]]


def metric(server: Running, name: str, version: int) -> float:
    line = f'{name}{{model="cnn",version="{version}"}} '
    text = server.client.call("/metrics")[1].decode()
    return next((float(one.removeprefix(line)) for one in text.splitlines() if one.startswith(line)), 0.0)


def test_a_shadow_is_compared_and_becomes_the_evidence_that_the_gate_requires(store: Store) -> None:
    version = equal_version(store)
    with pytest.raises(Refused, match="shadow: no evidence recorded"):
        promotion.promote("cnn", "production", reason="because", store=store)
    with Running("cnn@production", shadows=("cnn@staging",), shadow_share=1.0) as server:
        wait_for(lambda: any("4 on" in event.text for event in server.server.models["cnn"].events))
        answers = ask_many(server, 30)
        assert {answer["model_version"] for _, answer in answers} == {"1"}
        wait_for(lambda: metric(server, "onward_shadow_requests", version) >= 20)
        wait_for(lambda: metric(server, "onward_shadow_agreement", version) > 0.99)
        assert metric(server, "onward_shadow_latency_ratio", version) > 0
        wait_for(lambda: "shadow.production" in store.candidate("cnn", version).evidence)  # type: ignore[union-attr]
        wait_for(lambda: evidence_of_shadow.read(store.candidate("cnn", version).evidence)[0].requests >= 20)  # type: ignore[union-attr]
        assert "shadow started" in events(server)
    tags = store.candidate("cnn", version).evidence  # type: ignore[union-attr]
    (one,) = evidence_of_shadow.read(tags)
    assert (one.version, one.live_version, one.environment, one.failed) == ("4", "1", "production", 0)
    assert one.samples == 2 * one.requests
    outcome = promotion.promote("cnn", "production", reason="because", store=store)
    assert outcome.entry is not None
    detail = next(result.detail for result in outcome.gates if result.requirement == "shadow")
    assert f"{one.requests} requests compared with version 1" in detail
    # The evidence is about the change from version 1. Version 4 is live now, so it proves nothing for a further one.
    assert not gate.judge(tags, outcome.entry, 1).met


def test_another_answer_or_another_version_in_staging_is_noticed(store: Store) -> None:
    with Running("cnn@production", shadows=("cnn@staging",), shadow_share=1.0) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        ask_many(server, 25)
        wait_for(lambda: metric(server, "onward_shadow_requests", 2) >= 20)
        shadow = server.server.models["cnn"].shadow
        assert shadow is not None
        wait_for(lambda: shadow.evidence and shadow.evidence.requests >= 20)
        assert shadow.evidence is not None
        assert "error of" in shadow.evidence.faults[0] or "output y" in shadow.evidence.faults[0]
        stage(store, 3)
        wait_for(lambda: server.client.infer() and shadow.evidence and shadow.evidence.version == "3")
        assert events(server).count("shadow started") == 2
    stage(store, 2)
    with pytest.raises(Refused, match="output y"):
        promotion.promote("cnn", "production", reason="because", store=store)


def test_requests_that_fail_on_the_shadow_are_counted_and_harm_no_caller(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running("cnn@production", shadows=("cnn@staging",), shadow_share=1.0) as server:
        candidate = wait_for(lambda: server.server._candidates[0].loaded)

        def fails(*_: Any) -> Any:
            raise MachineFault("broken")

        monkeypatch.setattr(candidate, "_run", fails)
        assert {status for status, _ in ask_many(server, 5)} == {200}
        wait_for(lambda: metric(server, "onward_shadow_failed", 2) == 5)
        shadow = server.server.models["cnn"].shadow
        assert shadow is not None
        wait_for(lambda: shadow.evidence is not None and shadow.evidence.failed == 5)
        assert shadow.evidence is not None
        assert shadow.evidence.agreement == 0
        assert "5 requests failed on it" in shadow.evidence.faults


def test_a_shadow_that_is_slow_drops_requests_and_blocks_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    real = shadows._run

    def slow(*arguments: Any) -> Any:
        assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(shadows, "_run", slow)
    monkeypatch.setattr(shadows, "_QUEUE", 2)
    with Running("cnn@production", shadows=("cnn@staging",), shadow_share=1.0) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        assert {status for status, _ in ask_many(server, 10)} == {200}
        assert metric(server, "onward_shadow_dropped", 2) >= 5
        go_on.set()


def test_the_thread_of_a_shadow_has_a_low_priority(store: Store) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with Running("cnn@production", shadows=("cnn@staging",), shadow_share=1.0) as server:
        shadow = server.server.models["cnn"].shadow
        assert shadow is not None
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, shadow._thread.native_id or 0) == shadows._NICE)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def entry(sha256: str = "b" * 64, version: int = 1) -> Entry:
    return Entry(
        number=1, kind="promote", key="k", base=0, sha256=sha256, manifest="d" * 64, candidate_version=version,
        source="models:/m-1", actor="ann", reason="because", at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def compared(**changes: Any) -> dict[str, str]:
    """The tags of a version with evidence of its comparison."""
    facts_of_it: dict[str, Any] = {
        "environment": "production", "version": "2", "sha256": "a" * 64, "live_version": "1", "live_sha256": "b" * 64,
        "live_manifest": "d" * 64, "requests": 300, "failed": 0, "samples": 300, "agreement": 1.0, "latency_ratio": 0.9,
        "began": "2026-01-01T00:00:00", "ended": "2026-01-02T00:00:00",
    }  # fmt: skip
    found = ShadowEvidence(**facts_of_it | changes)
    return {"sha256": "a" * 64, "shadow.production": found.model_dump_json()}


WORSE = {
    "output": "y", "kind": "scores", "measure": "share of changed answers", "value": 0.3, "low": 0.2, "high": 0.4,
    "limit": 0.1, "holds": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"sha256": "a" * 64}, "no evidence recorded"),
        ({"sha256": "a" * 64, "shadow.production": "{}"}, "no evidence recorded"),
        (compared(requests=299), "300 requests are needed"),
        (compared(failed=1), "1 requests failed on it"),
        (compared(outputs=[WORSE]), "output y: share of changed answers 0.3, 0.1 allowed"),
        (compared(live_sha256="c" * 64, live_version="7"), "compared with version 7, but version 1 is live"),
        (compared(live_manifest="other"), "but version 1 is live"),
        (compared(sha256="c" * 64), "no evidence recorded"),
    ],
)
def test_the_gate_requires_enough_agreement_of_this_version_with_the_live_one(tags: Any, words: str) -> None:
    found = gate.judge(tags, entry(), evidence_of_shadow.MINIMUM)
    assert not found.met
    assert words in found.detail
    good = gate.judge(compared(), entry(), evidence_of_shadow.MINIMUM)
    assert good.met
    assert "0.9 times its latency" in good.detail
    assert gate.judge({}, None, 300).met


def test_suites_can_judge_the_latency_of_a_shadow() -> None:
    row = facts(compared(), None, lambda _: {})
    assert row["shadow.production.latency_ratio"] == 0.9
    assert "shadow.production" not in row


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The versions in this set fail on every request."""
    found: set[str] = set()
    real = engine.compute

    def compute(loaded: Any, feed: Any) -> Any:
        if str(loaded.origin.get("version")) in found:
            raise MachineFault("broken")
        return real(loaded, feed)

    monkeypatch.setattr(engine, "compute", compute)
    return found


def test_a_canary_answers_its_share_and_names_its_version(store: Store) -> None:
    with Running("cnn@production", canaries={"cnn@staging": 40.0}) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        answers = [answer for _, answer in ask_many(server, 60)]
        versions = [answer["model_version"] for answer in answers]
        assert 8 <= versions.count("2") <= 45
        assert server.client.infer(path="/v2/models/cnn/versions/1/infer")[1]["model_version"] == "1"
        assert metric(server, "onward_canary_requests", 2) == versions.count("2")
        assert metric(server, "onward_canary_share", 2) == pytest.approx(0.4)
    values = np.random.default_rng(0).standard_normal((60, 2, 4)).astype(np.float32)
    for given, answer in zip(values, answers, strict=True):
        computed = np.reshape(answer["outputs"][0]["data"], (2, 4)) / float(answer["model_version"])
        assert np.allclose(computed, given, rtol=1e-5)


def test_a_failing_canary_is_stopped_and_no_request_is_lost(store: Store, failing: set[str]) -> None:
    with Running("cnn@production", canaries={"cnn@staging": 100.0}) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        assert ask_many(server, 3)[-1][1]["model_version"] == "2"
        failing.add("2")
        answers = ask_many(server, 12)
        assert {status for status, _ in answers} == {200}
        assert {answer["model_version"] for _, answer in answers} == {"1"}
        assert metric(server, "onward_canary_errors", 2) == 4
        assert metric(server, "onward_canary_stops", 2) == 1
        assert metric(server, "onward_canary_share", 2) == 0
        assert events(server)[-1] == "canary stopped"
        stage(store, 3)  # another candidate gets its chance
        wait_for(lambda: server.client.infer()[1]["model_version"] == "3")


def test_a_request_that_fails_everywhere_does_not_count_against_the_canary(store: Store) -> None:
    with Running("cnn@production", canaries={"cnn@staging": 100.0}) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        for _ in range(10):
            assert server.client.infer(np.zeros((2, 3)))[0] == 400
        assert metric(server, "onward_canary_errors", 2) == 0
        assert server.client.infer()[1]["model_version"] == "2"


def test_a_canary_that_hangs_loses_no_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.registry.serve.limits import Limits

    real = engine.compute

    def compute(loaded: Any, feed: Any) -> Any:
        if loaded.origin["version"] == 2:
            time.sleep(0.8)
        return real(loaded, feed)

    monkeypatch.setattr(engine, "compute", compute)
    with Running("cnn@production", canaries={"cnn@staging": 100.0}, limits=Limits(seconds=1.0)) as server:
        wait_for(lambda: server.server._candidates[0].loaded)
        answers = ask_many(server, 4)
        assert [(status, answer["model_version"]) for status, answer in answers] == [(200, "1")] * 4


def test_a_canary_promoted_to_live_is_no_canary_any_more(store: Store) -> None:
    with Running("cnn@production", canaries={"cnn@staging": 100.0}) as server:
        wait_for(lambda: server.client.infer()[1]["model_version"] == "2")
        promotion.promote("cnn", "production", reason="because", force=True, store=store)
        wait_for(lambda: server.server.models["cnn"].session.loaded.origin["version"] == 2)
        before = metric(server, "onward_canary_requests", 2)
        ask_many(server, 5)
        assert metric(server, "onward_canary_requests", 2) == before


def test_the_rule_tolerates_rare_errors_and_stops_frequent_ones() -> None:
    rng = np.random.default_rng(1)

    def stops_after(share: float) -> int:
        rule = ErrorRule()
        for number in range(20_000):
            if rng.random() < share:
                if rule.wrong():
                    return number
            else:
                rule.right()
        return 20_000

    assert all(stops_after(0.0005) == 20_000 for _ in range(5))
    assert all(stops_after(0.03) < 1_000 for _ in range(5))
    assert stops_after(1.0) == 3
    rule = ErrorRule()
    for _ in range(100_000):  # a long good time is no credit
        rule.right()
    assert [rule.wrong() for _ in range(4)] == [False, False, False, True]


def test_the_candidates_of_canaries() -> None:
    assert canaries(["cnn@staging:5"], []) == {"cnn@staging": 5.0}
    assert canaries(["2.5"], ["cnn@staging", "mlp@staging"]) == {"cnn@staging": 2.5, "mlp@staging": 2.5}
    for given, words in (
        (["cnn@staging"], "give TARGET:PERCENT"),
        (["cnn@staging:0"], "give TARGET:PERCENT"),
        (["cnn@staging:101"], "give TARGET:PERCENT"),
        (["5"], "name the candidate"),
        (["cnn@staging:5", "cnn@staging:6"], "given twice"),
    ):
        with pytest.raises(UsageError, match=words):
            canaries(given, [])


def test_a_candidate_of_no_served_model_is_an_error(store: Store) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shadows": ("mlp@staging",)}, "this server has cnn@production"),
        ({"shadows": ("cnn@nowhere",)}, "no environment 'nowhere'"),
        ({"shadows": ("cnn@production",)}, "to another one than itself"),
        ({"shadows": ("cnn@staging", "cnn/3")}, "has a shadow already"),
        ({"canaries": {"mlp@staging": 5.0}}, "this server has cnn@production"),
    ]
    for options, words in cases:
        with pytest.raises(OnwardError, match=words):
            Running("cnn@production", **options)


def test_a_candidate_that_cannot_be_loaded_harms_nothing(store: Store) -> None:
    stage(store, add_candidate(store, "cnn", 5, recorded_factor=6))
    with Running("cnn@production", shadows=("cnn@staging",), canaries={"cnn@staging": 100.0}) as server:
        wait_for(lambda: "refused" in events(server))
        assert server.client.infer()[1]["model_version"] == "1"
        assert server.client.call("/v2/health/ready")[0] == 200
        server.server._candidates[0]._retry_at += 3600  # only the refused version has to wait
        stage(store, 3)
        wait_for(lambda: server.client.infer()[1]["model_version"] == "3")


def status_lines(store: Store) -> list[str]:
    (model,) = overview.status(store)
    (production,) = [one for one in model.environments if one.environment == "production"]
    return list(map(str, production.refused))


def test_a_refused_version_is_in_the_status_until_a_version_is_loaded(
    store: Store, onward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = add_candidate(store, "cnn", 5, recorded_factor=6)
    with Running("cnn@production") as server:
        promotion.promote("cnn", "production", bad, reason="because", force=True, store=store)
        (line,) = wait_for(lambda: status_lines(store))
        assert f"does not serve version {bad}, entry 2" in line
        assert "does not repeat its recorded answers" in line
        assert f"! cnn in production: {line}" in onward("status")[1]
        state = json.loads(onward("status", "--json")[1])[0]["environments"]["production"]
        assert state["refused"][0]["version"] == bad
        promotion.rollback("cnn", "production", reason="because", store=store)
        wait_for(lambda: not status_lines(store))
        wait_for(lambda: not any(name.startswith(refused.PREFIX) for name in tags(store)))
        assert server.client.infer()[1]["model_version"] == "1"


def test_a_server_that_refuses_a_version_at_its_start_says_so_in_the_status(store: Store) -> None:
    bad = add_candidate(store, "cnn", 5, recorded_factor=6)
    promotion.promote("cnn", "production", bad, reason="because", force=True, store=store)
    with pytest.raises(Refused, match="does not repeat its answers here"):
        Running("cnn@production")
    assert f"does not serve version {bad}, entry 2" in status_lines(store)[0]
    promotion.rollback("cnn", "production", reason="because", store=store)
    assert status_lines(store) == []  # it was about an entry that is not live any more
    with Running("cnn@production"):
        assert not any(name.startswith(refused.PREFIX) for name in tags(store))


def tags(store: Store) -> dict[str, str]:
    return dict(store._client.get_registered_model("production.cnn").tags)


def test_a_refusal_that_the_store_does_not_take_is_logged_and_local(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_writing(*_: Any) -> Any:
        raise Refused("does not allow ann to do this")

    bad = add_candidate(store, "cnn", 5, recorded_factor=6)
    with Running("cnn@production") as server, monkeypatch.context() as patch:
        patch.setattr(refused, "write", no_writing)
        promotion.promote("cnn", "production", bad, reason="because", force=True, store=store)
        wait_for(lambda: "refused" in events(server))
        wait_for(lambda: "`onward status` on other machines shows no refusal" in caplog.text)
    assert status_lines(store) == []


def test_a_refused_version_is_not_replayed_at_every_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, tries = add_candidate(store, "cnn", 5, recorded_factor=6), []
    real = replay.replay_in_subprocess

    def counted(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        return real(*arguments, **options)

    with Running("cnn@production") as server:
        monkeypatch.setattr(replay, "replay_in_subprocess", counted)
        monkeypatch.setattr(following, "FIRST_RETRY_S", 3600.0)
        server.server.models["cnn"]._follower._retry_s = 3600.0
        promotion.promote("cnn", "production", bad, reason="because", force=True, store=store)
        wait_for(lambda: "refused" in events(server))
        time.sleep(1)
        assert len(tries) == 1
        assert events(server).count("refused") == 1
        promotion.promote("cnn", "production", 3, reason="because", force=True, store=store)
        wait_for(lambda: server.client.infer()[1]["model_version"] == "3")


def test_twenty_promotions_and_rollbacks_under_load_drop_and_mix_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(folder: Path, provider: str = "", allow_custom_ops: bool = False) -> tuple[bool, str]:
        return replay.replay(folder, provider, allow_custom_ops)

    monkeypatch.setattr(replay, "replay_in_subprocess", in_this_process)  # a process for each takes a minute
    answers: list[tuple[int, Any, Any]] = []
    done = threading.Event()

    def ask(seed: int) -> None:
        client, rng = Client(server.server.port), np.random.default_rng(seed)
        while not done.is_set():
            given = rng.integers(1, 100, (int(rng.integers(1, 4)), 4)).astype(np.float32)
            answers.append((*client.infer(given), given))

    with Running("cnn@production", batch_delay_ms=3.0, max_batch=8) as server:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for number in range(10):
            version = 2 + number % 2
            promotion.promote("cnn", "production", version, reason="because", force=True, store=store)
            wait_for(lambda version=version: served(server) == version)
            promotion.rollback("cnn", "production", reason="because", to=1, store=store)
            wait_for(lambda: served(server) == 1)
        done.set()
        for thread in threads:
            thread.join()
        runs, requests = (
            sum(server.server.metrics.counters[name].values())
            for name in ("nv_inference_exec_count", "nv_inference_request_success")
        )
    assert {status for status, _, _ in answers} == {200}
    assert {answer["model_version"] for _, answer, _ in answers} == {"1", "2", "3"}
    for _, answer, given in answers:
        computed = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])
        assert np.array_equal(computed, given * float(answer["model_version"]))
    assert runs < requests  # some were joined


def served(server: Running) -> int:
    return int(server.server.models["cnn"].session.loaded.origin["version"])


def test_unreachable_is_no_refusal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running("cnn@production") as server:
        session = server.server.models["cnn"].session

        def fails(**_: Any) -> bool:
            raise StoreUnreachable("no answer")

        monkeypatch.setattr(session, "refresh", fails)
        wait_for(lambda: "unreachable" in events(server))
        assert "refused" not in events(server)

"""The section `environments` of params.yaml: valid settings, its location, and its meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from onward.registry.errors import UsageError
from onward.registry.gates import policy
from onward.registry.gates.policy import Notify, environment, parse, read
from onward.registry.names import is_name, valid_name

KEY = "A" * 43 + "="


def one(**options: Any) -> policy.Environment:
    """The environment `staging` with these options."""
    return parse({"staging": {"from": "candidate", "require": [], **options}})["staging"]


def test_without_a_section_the_defaults_are_two_ordered_environments() -> None:
    found = parse(None)
    assert [(name, wanted.source, wanted.require) for name, wanted in found.items()] == [
        ("staging", "candidate", ["parity", "quality", "data"]),
        ("production", "staging", ["parity", "quality", "data", "latency", "replay"]),
    ]
    for wanted in found.values():
        assert (wanted.notify, wanted.mirror_stages, wanted.four_eyes) == (None, False, False)
        assert (wanted.signers, wanted.files_key, wanted.suites) == ({}, "", [])
        assert wanted.named == wanted.require


@pytest.mark.parametrize("section", [{}, [], "staging", 3])
def test_a_section_that_is_not_a_mapping_is_rejected(section: Any) -> None:
    with pytest.raises(UsageError, match=r"environments: has to map names"):
        parse(section)


def test_requirements_are_built_in_or_suite_paths() -> None:
    found = one(require=["gates/fast.json", "parity", "a/b.json", "replay"])
    assert found.named == ["parity", "replay"]
    assert found.suites == ["gates/fast.json", "a/b.json"]


@pytest.mark.parametrize("name", ["cnn", "a", "9", "a-b_c", "A9", "1-"])
def test_names_of_letters_digits_hyphens_and_underscores_are_valid(name: str) -> None:
    assert is_name(name)
    assert valid_name(name, "a model") == name
    assert list(parse({name: {"from": "candidate", "require": []}})) == [name]


@pytest.mark.parametrize("name", ["", "-a", "_a", "a.b", "a/b", "a b", "a'", "ä", "a\n", "a.", "."])
def test_names_that_could_affect_a_path_or_filter_are_invalid(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(UsageError, match="is not a valid name for a model"):
        valid_name(name, "a model")
    with pytest.raises(UsageError, match="not a valid name for an environment"):
        parse({name: {"from": "candidate", "require": []}})


def test_candidate_is_not_a_valid_environment_name() -> None:
    with pytest.raises(UsageError, match=r"environments\.candidate: this name is reserved"):
        parse({"candidate": {"from": "candidate", "require": []}})


def test_a_name_that_yaml_does_not_read_as_text_is_invalid() -> None:
    for name in (3, True, None):
        with pytest.raises(UsageError, match="not a valid name for an environment"):
            parse({name: {"from": "candidate", "require": []}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require": ["parity", "speed"]}, r"staging\.require\[1\]: no requirement 'speed'; there are parity, quality"),
        ({"require": ["../a.json"]}, r"staging\.require\[0\]: '\.\./a\.json' must be a path inside the repository"),
        ({"require": ["parity", "/a.json"]}, r"staging\.require\[1\]: '/a\.json' must be a path inside"),
        ({"require": ["a/../../b.json"]}, r"must be a path inside the repository"),
        ({"files_key": "/key.pem"}, r"staging\.files_key: '/key\.pem' must be a path inside"),
        ({"files_key": "../key.pem"}, r"staging\.files_key: "),
        ({"signers": {"ann": "short"}}, r"staging\.signers\.ann: not a public key"),
        ({"signers": {"ann": KEY, "bob": {"key": "!" * 44}}}, r"staging\.signers\.bob: not a public key"),
        ({"signers": {"ann": {"key": KEY, "untill": "x"}}}, r"staging\.signers\.ann\.untill: unknown key"),
        ({"signers": {"ann": {"key": KEY, "until": "soon"}}}, r"staging\.signers\.ann\.until: "),
        ({"mirror": True}, r"staging\.mirror: unknown key; there are from, require, notify, mirror_stages, four_eyes"),
        ({"four_eyes": "both"}, r"staging\.four_eyes: "),
        ({"notify": {"shout": "x"}}, r"staging\.notify\.shout: unknown key; there are command, webhook, "),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_named_with_its_path(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        one(**options)


def test_valid_settings_are_kept() -> None:
    found = one(files_key="keys/team.pem", signers={"ann": KEY}, four_eyes=True, mirror_stages=True)
    assert (found.files_key, found.four_eyes, found.mirror_stages) == ("keys/team.pem", True, True)
    assert found.signers["ann"].key == KEY


def test_stages_are_mirrored_only_for_names_of_mlflow_stages() -> None:
    section = {"staging": {"from": "candidate", "require": [], "mirror_stages": True}}
    section["production"] = {"from": "staging", "require": [], "mirror_stages": True}
    assert all(wanted.mirror_stages for wanted in parse(section).values())
    assert policy.STAGES == {"staging": "Staging", "production": "Production"}
    with pytest.raises(UsageError, match=r"environments\.test\.mirror_stages: MLflow has stages for staging and"):
        parse({"test": {"from": "candidate", "require": [], "mirror_stages": True}})
    assert not parse({"test": {"from": "candidate", "require": [], "mirror_stages": False}})["test"].mirror_stages


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({"a": "b"}, r"environments\.a\.from: no environment 'b'; name one, or 'candidate'"),
        ({"a": "candidate", "b": "a", "c": "x"}, r"environments\.c\.from: no environment 'x'"),
        ({"a": "a"}, r"environments\.a\.from: forms a cycle: a from a"),
        ({"a": "b", "b": "a"}, r"forms a cycle: a from b from a"),
        ({"a": "b", "b": "c", "c": "b"}, r"environments\.a\.from: forms a cycle: a from b from c from b"),
        ({"ok": "candidate", "a": "b", "b": "c", "c": "a"}, r"forms a cycle"),
    ],
)
def test_every_environment_must_lead_back_to_the_candidates(origins: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse({name: {"from": origin, "require": []} for name, origin in origins.items()})


def test_environments_may_be_listed_in_any_order() -> None:
    found = parse(
        {
            "c": {"from": "b", "require": []},
            "b": {"from": "a", "require": []},
            "a": {"from": "candidate", "require": []},
        }
    )
    assert [wanted.source for wanted in found.values()] == ["b", "a", "candidate"]
    assert environment(found, "b").source == "a"
    with pytest.raises(UsageError, match=r"no environment 'd'; params\.yaml has c, b, a"):
        environment(found, "d")


@pytest.mark.parametrize(
    "said",
    [
        {"command": ["notify-send", "x"]},
        {"command": ["a"]},
        {"webhook": "https://a/b"},
        {"server_webhook": "$HOOK"},
        {"webhook": "http://a"},
    ],
)
def test_exactly_one_notification_channel_is_accepted(said: dict[str, Any]) -> None:
    found = one(notify=said).notify
    assert found == Notify(**said)
    assert {name: value for name, value in found.model_dump().items() if value is not None} == said


@pytest.mark.parametrize(
    "said",
    [
        {}, {"command": None}, {"command": ["a"], "webhook": None}, {"command": ["a"], "webhook": "http://a"},
        {"command": []}, {"webhook": "https://a b"}, {"webhook": "ftp://a"}, {"webhook": "$1A"},
        {"webhook": "x http://a"}, {"webhook": "https://"},
    ],
)  # fmt: skip
def test_zero_or_two_notification_channels_are_rejected(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"environments\.staging\.notify"):
        one(notify=said)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONWARD_PARAMS", raising=False)
    return tmp_path


def write(path: Path, *names: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("environments:\n" + "".join(f"  {name}: {{from: candidate, require: []}}\n" for name in names))


def test_the_policy_comes_from_the_surrounding_checkout(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dvc.yaml").write_text("")
    assert list(read()) == ["staging", "production"]
    write(place / "params.yaml", "live")
    assert list(read()) == ["live"]
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert list(read()) == ["live"]
    assert policy.home() == place


def test_a_host_without_a_checkout_uses_the_default(place: Path) -> None:
    write(place / "params.yaml", "live")
    assert list(read()) == ["staging", "production"]
    with pytest.raises(UsageError, match=r"no dvc\.yaml"):
        policy.home()


def test_a_configured_file_overrides_the_checkout(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dvc.yaml").write_text("")
    write(place / "params.yaml", "live")
    write(place / "etc" / "onward.yaml", "edge")
    monkeypatch.setenv("ONWARD_PARAMS", "etc/onward.yaml")
    assert list(read()) == ["edge"]
    assert policy.home() == place / "etc"
    monkeypatch.setenv("ONWARD_PARAMS", "etc/none.yaml")
    with pytest.raises(UsageError, match=r"ONWARD_PARAMS: etc/none\.yaml cannot be read: No such file"):
        read()


def test_a_file_is_read_again_only_if_it_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dvc.yaml").write_text("")
    write(place / "params.yaml", "live")
    first = read()
    assert read() is first
    write(place / "params.yaml", "edge")  # of the same size
    os.utime(place / "params.yaml", ns=(1, 1))
    assert list(read()) == ["edge"]
    write(place / "params.yaml", "live", "edge")
    os.utime(place / "params.yaml", ns=(1, 1))
    assert list(read()) == ["live", "edge"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "seed: 3\n", "[1, 2]\n", "text\n", "environments:\n"])
def test_a_file_without_the_section_gives_the_default(place: Path, text: str) -> None:
    (place / "dvc.yaml").write_text("")
    (place / "params.yaml").write_text(text)
    assert list(read()) == ["staging", "production"]


@pytest.mark.parametrize("text", ["environments: {a: [", "a: 2026-99-99\n", "a: b: c\n"])
def test_an_invalid_yaml_file_is_reported(place: Path, text: str) -> None:
    (place / "dvc.yaml").write_text("")
    (place / "params.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"params\.yaml: is not YAML"):
        read()


def test_a_duplicate_key_is_rejected_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "signers.yaml"
    path.write_text("environments:\n  staging:\n    from: candidate\n    require: []\n    from: production\n")
    monkeypatch.setenv("ONWARD_PARAMS", str(path))
    with pytest.raises(UsageError, match=r"the key from occurs twice.*line 5"):
        policy.read()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\u200b"])
def test_a_signer_name_must_be_visible(name: str) -> None:
    key = "A" * 43 + "="
    with pytest.raises(UsageError, match="is not a valid name"):
        policy.parse({"staging": {"from": "candidate", "require": [], "signers": {name: key}}})

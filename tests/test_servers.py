"""A real MLflow with basic auth on Postgres and an S3 store, and users with different permissions."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onward.registry.errors import Refused, StoreUnreachable, UsageError
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import overview, promotion
from onward.registry.store.schema import Drift
from onward.registry.store.store import Store
from tests import race
from tests.conftest import ROOT, Command, Receiver, not_none
from tests.servers import (
    ADMIN,
    PASSWORDS,
    bucket,
    compose,
    free_port,
    mlflow_server,
    objects,
    postgres,
    postgres_binaries,
    wait_until,
)
from tests.store_factory import add_candidate

Login = Callable[..., Store]

PASSWORD = "a long enough password"
X = np.ones((2, 4), np.float32)


@dataclass(frozen=True)
class Server:
    url: str
    objects: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.fail("Postgres is not installed: `make postgres` does that (Debian: apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("server")
    with (
        pytest.MonkeyPatch.context() as patch,
        postgres(binaries) as database,
        objects(folder) as store,
        mlflow_server(database, store, folder) as url,
    ):
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a busy machine may answer slowly
        yield Server(url, store)


@pytest.fixture
def login(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Login:
    """Return a function that logs in as another user of the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def become(user: str, password: str = PASSWORD) -> Store:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        monkeypatch.setenv("ONWARD_ACTOR", user)
        return Store()

    return become


@pytest.fixture(scope="module")
def users(server: Server) -> None:
    """Create users: ann publishes and may edit staging, bob may also edit production, eve may read."""
    from mlflow.server import get_app_client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        made = promotion.create_environments(["cnn"])
        assert made == ["environments/staging", "staging.cnn", "environments/production", "production.cnn"]
        assert promotion.create_environments(["cnn"]) == []
        client, store = get_app_client("basic-auth", server.url), Store()
        add_candidate(store, "cnn", 1)
        # The code of the page creates bob; ann may promote only to staging.
        (page,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "team-setup.md").read_text(), re.M | re.S)
        page = page.replace("http://localhost:5000", server.url).replace("classifier", "cnn")
        page = page.replace("a password that bob will change", PASSWORD)
        exec(page)
        exec(page.replace('"bob"', '"ann"').replace('("staging", "production")', '("staging",)'))
        client.create_user("eve", PASSWORD)
        add_candidate(store, "cnn", 2)


@pytest.mark.usefixtures("users")
def test_each_user_may_do_what_the_administrator_granted(login: Login, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    for version in (1, 2):
        ann = login("ann")
        promotion.promote("cnn", "staging", version, reason="because", store=ann)
        before = ann.log("production", "cnn")
        with pytest.raises(Refused, match="does not allow ann to do this"):
            promotion.promote("cnn", "production", reason="because", store=ann)
        assert ann.log("production", "cnn") == before
        outcome = promotion.promote("cnn", "production", reason="because", store=login("bob"))
        assert (not_none(outcome.entry).actor, outcome.note) == ("bob", "")
    eve = login("eve")
    with pytest.raises(Refused, match="does not allow eve to do this"):
        promotion.rollback("cnn", "production", reason="because", store=eve)
    assert np.array_equal(InferenceSession("cnn@production").predict(X), 2 * X)
    assert promotion.rollback("cnn", "production", reason="because", store=login("bob")).version == 1
    eve = login("eve")
    assert overview.check("cnn", "production", eve).met
    assert np.array_equal(InferenceSession("cnn@production").predict(X), X)
    assert [state.drift for state in overview.status(eve)[0].environments] == [(), ()]
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("users")
def test_a_denied_command_prints_one_line(login: Login, onward: Command) -> None:
    login("eve")
    code, out, err = onward("promote", "cnn", "1", "--to", "staging", "--reason", "because", "--force")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "docs/team-setup.md" in err
    assert PASSWORD not in err
    code, out, _ = onward("history", "cnn", "--json")
    assert code == 0
    assert "eve" not in {entry["actor"] for log in json.loads(out).values() for entry in log}
    login("eve", "a wrong password")
    code, _, err = onward("status")
    assert code == 2
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in err


@pytest.mark.usefixtures("users")
def test_only_granted_users_may_change_created_environments(login: Login) -> None:
    eve = login("eve")
    assert promotion.create_environments(["cnn"], eve) == []
    with pytest.raises(Refused, match="does not allow eve"):
        eve._write(Drift("production.cnn", "live", 1, None))


@pytest.mark.usefixtures("users")
def test_an_alias_without_write_permission_does_not_undo_the_entry(login: Login, server: Server) -> None:
    from mlflow.server import get_app_client

    login(*ADMIN)
    client = get_app_client("basic-auth", server.url)
    client.revoke_user_permission("bob", "registered_model", "cnn")
    try:
        bob = login("bob")
        live = bob.log("staging", "cnn").history.live
        other = 1 if live is None or live.candidate_version == 2 else 2
        outcome = promotion.promote("cnn", "staging", other, reason="because", store=bob)
        assert outcome.changed
        assert "not all aliases could be written" in outcome.note
    finally:
        login(*ADMIN)
        client.grant_user_permission("bob", "registered_model", "cnn", "EDIT")
    assert [getattr(drift, "registered", None) for drift in promotion.reconcile()] == ["cnn"]


@pytest.mark.usefixtures("users")
def test_an_administrator_grants_an_environment_with_one_command(login: Login, server: Server, onward: Command) -> None:
    from mlflow.server import get_app_client

    login(*ADMIN)
    client = get_app_client("basic-auth", server.url)
    client.create_user("dora", PASSWORD)
    before = promotion.create_environments(["cnn"])
    assert before == []
    code, out, err = onward("environments", "grant", "staging", "--to", "dora", "--json")
    assert code == 0, err
    granted = json.loads(out)["granted"]
    assert {"kind": "registered_model", "name": "staging.cnn", "changed": True} in granted
    assert {"kind": "experiment", "name": "environments/staging", "changed": True} in granted
    assert {"kind": "registered_model", "name": "cnn", "changed": True} in granted
    code, out, _ = onward("environments", "grant", "staging", "--to", "dora")
    assert all(line.endswith(", as before") for line in out.splitlines())
    dora = login("dora")
    live = dora.log("staging", "cnn").history.live
    other = 1 if live is None or live.candidate_version == 2 else 2
    outcome = promotion.promote("cnn", "staging", other, reason="because", store=dora)
    assert (outcome.changed, outcome.note) == (True, "")
    with pytest.raises(Refused, match="does not allow dora"):
        dora.tag("production.cnn", 1, "colour", "blue")
    code, _, err = onward("environments", "grant", "production", "--to", "dora")
    assert (code, "does not allow dora" in err) == (1, True)
    login(*ADMIN)
    code, _, err = onward("environments", "grant", "staging", "--to", "nobody-there")
    assert (code, "no user 'nobody-there'" in err) == (2, True)
    # A lower grant is raised; a denial remains.
    for permission in ("READ", "DENY"):
        client.revoke_user_permission("dora", "registered_model", "staging.cnn")
        client.grant_user_permission("dora", "registered_model", "staging.cnn", permission)
        if permission == "READ":
            assert onward("environments", "grant", "staging", "--to", "dora")[0] == 0
            assert client.get_user_permission("dora", "registered_model", "staging.cnn").permission == "EDIT"
    code, _, err = onward("environments", "grant", "staging", "--to", "dora")
    assert (code, "has DENY on the registered model staging.cnn" in err) == (1, True)


@pytest.mark.usefixtures("users")
def test_the_server_webhook_reports_entries_and_the_live_version(
    login: Login, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{receiver.server_port}/hush"
    monkeypatch.setenv("TEAM_HOOK", address)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    section = {"hooked": {"from": "candidate", "require": [], "notify": {"server_webhook": "$TEAM_HOOK"}}}
    (tmp_path / "params.yaml").write_text(json.dumps({"environments": section}))
    with pytest.raises(Refused, match="does not allow bob"):
        login("bob").prepare_webhook("hooked", address)
    admin = login(*ADMIN)
    with pytest.raises(UsageError, match="the server rejects the address") as refused:
        admin.prepare_webhook("hooked", "ftp://hush")
    assert "hush" not in str(refused.value)
    assert "webhook onward.hooked" in promotion.create_environments(["cnn"], admin)
    assert promotion.create_environments(["cnn"], admin) == []
    receiver.codes[:] = [503, 204]  # the server retries
    entry = promotion.promote("cnn", "hooked", 1, reason="because", store=admin).entry
    wait_until(lambda: len(receiver.got) == 4, 60)  # an entry, two aliases, and one retry
    told = {body["entity"]: body["data"] for _, _, body in receiver.got if body["data"]["name"] == "hooked.cnn"}
    made, live = told["model_version"], told["model_version_alias"]
    assert (made["tags"]["actor"], made["tags"]["reason"]) == (not_none(entry).actor, "because")
    assert made["description"].splitlines()[0] == str(entry)
    assert (live["alias"], live["version"]) == ("live", str(not_none(entry).number))
    monkeypatch.setenv("TEAM_HOOK", address + "-moved")
    assert promotion.create_environments(["cnn"], admin) == ["webhook onward.hooked"]


@pytest.mark.usefixtures("users")
def test_racing_processes_on_postgres_all_get_the_correct_result(login: Login) -> None:
    store = login(*ADMIN)
    add_candidate(store, "cnn", 3)
    before = len(store.log("staging", "cnn").history.counted)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        told = pool.starmap(race.promote_and_roll_back, [(seed, 4) for seed in range(3)])
    log = store.log("staging", "cnn")
    answers = [answer for answers in told for answer in answers]
    assert len(log.history.counted) - before == answers.count("won") > 0
    promotion.reconcile(store)
    assert store.versions.aliases("staging.cnn") == {"live": not_none(log.history.live).number}


@pytest.mark.usefixtures("users")
def test_missing_files_are_distinguished_from_an_unreachable_server(login: Login, server: Server) -> None:
    add_candidate(login(*ADMIN), "lost", 1)
    [found] = Store().candidates("lost")
    files = [item for item in bucket(server.objects).objects.all() if f"/{found.logged_model}/artifacts/" in item.key]
    assert "model.onnx" in {item.key.rpartition("/")[2] for item in files}
    for item in files:
        item.delete()
    with pytest.raises(Refused, match="the store no longer has its files"):
        promotion.promote("lost", "staging", 1, reason="because")


def test_an_unreachable_server_is_distinguished_from_a_denied_request(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    login("eve")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnreachable):
        overview.status()


@pytest.mark.parametrize("name", ["../cnn", ""])
def test_an_environment_of_an_invalid_model_name_is_not_created(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="name for a model"):
        promotion.create_environments([name])


def test_the_compose_file_is_consistent() -> None:
    """The other tests use the service `mlflow`; this test checks the rest of the file."""
    page = (ROOT / "docs" / "team-setup.md").read_text()
    (env,) = re.findall(r"^```\n((?:[A-Z_]+=\.\.\.\n)+)```", page, re.M)
    assert set(re.findall(r"^([A-Z_]+)=", env, re.M)) == set(PASSWORDS)
    loaded = compose(PASSWORDS)  # no other variable is needed
    services = loaded["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        assert all(re.search(r":[\w.-]*\d", image) for image in [service.get("image", ":1")])
        assert {use["source"] for use in service.get("configs", [])} <= loaded["configs"].keys()
        assert {use.partition(":")[0] for use in service.get("volumes", [])} <= loaded["volumes"].keys()
    waited_for = {
        name for s in services.values() for name, how in s.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }  # fmt: skip
    assert all("healthcheck" in services[name] for name in waited_for)
    server = services["mlflow"]
    destination = server["command"].split("--artifacts-destination ")[1].split()[0]
    assert services["bucket"]["command"].endswith(f"/{destination.removeprefix('s3://')}")
    assert server["environment"]["AWS_ACCESS_KEY_ID"] == services["objects"]["environment"]["MINIO_ROOT_USER"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    installed = re.findall(r"([\w-]+)(?:\[binary\])?==([0-9.]+)", server["build"]["dockerfile_inline"])
    assert {"mlflow", "Flask-WTF", "psycopg", "boto3"} == {name for name, _ in installed}
    assert [name for name, version in installed if pinned[name] != version] == []

"""Decision log: which decisions are logged, the content of a line, and the rotation of the file."""

import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rolecall.audit import AuditLog, decision_log
from rolecall.audit.decision_log import EVERY_SECONDS, DecisionLog
from rolecall.client import Client
from rolecall.config import Settings
from rolecall.credentials import server_key
from rolecall.errors import ConfigError, PermissionMissing
from rolecall.server import build_server
from rolecall.services import operator_tokens
from rolecall.v1 import authorization_pb2 as pb
from support.sites import MakeSite, Site

BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"
CHECK = "/rolecall.v1.AuthorizationService/Check"
FIELDS = [
    "time",
    "organization",
    "subject",
    "action",
    "resource",
    "scope",
    "decision",
    "reason",
    "assignment_id",
    "policy_version",
    "revision",
    "call_id",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the decision log."""
    return tmp_path / "decisions.jsonl"


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(make_site: MakeSite, sqlite_url: str, file: Path) -> StartSite:
    """Return a function that starts a server with a decision log in `file`."""

    def start(mode: str, **settings: object) -> Site:
        return make_site(sqlite_url, **{"decision_log": mode, "decision_log_file": file, **settings})

    return start


def lines_of(file: Path) -> list[dict[str, object]]:
    """The logged decisions."""
    # They are written soon.
    time.sleep(5 * EVERY_SECONDS)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ask(site: Site, method: str, request: pb.CheckRequest | pb.BatchCheckRequest, request_id: str) -> bytes:
    """Make the owner's call with this call id; return the raw answer."""
    call = site.channel().unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", f"Bearer {site.tokens['OWNER']}"), ("x-request-id", request_id))
    answer = bytes(call(request.SerializeToString(), metadata=metadata, timeout=30))
    # It is noted soon.
    assert site.core.decisions.flush()
    return answer


def long_batch(number: int) -> pb.BatchCheckRequest:
    """A thousand questions whose log lines take more than a megabyte."""
    resources = (f"secrets/{number}/{item}/{'x' * 1000}" for item in range(1000))
    return pb.BatchCheckRequest(
        checks=[pb.BatchCheckItem(subject="role:VIEWER", action="view", resource=resource) for resource in resources]
    )


# Which decisions


@pytest.mark.parametrize(
    ("mode", "noted"),
    [("denies", ["deny", "deny"]), ("all", ["allow", "deny", "allow", "deny"])],
)
def test_mode_selects_the_logged_decisions(start_site: StartSite, file: Path, mode: str, noted: list[str]) -> None:
    """`denies` logs the denials of Check and BatchCheck, `all` every decision, in order."""
    site = start_site(mode)
    with Client(site.address, site.tokens["OWNER"]) as client:
        client.check("viewer@acme.io", "view", "secrets")
        client.check("viewernosecrets@acme.io", "view", "secrets")
        client.batch_check([("ann@acme.io", "view", "secrets"), ("bob@acme.io", "view", "secrets")])

    assert [line["decision"] for line in lines_of(file)] == noted


def test_off_makes_no_file(start_site: StartSite, file: Path) -> None:
    """With the decision log off, no file is made."""
    site = start_site("off")
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert not client.check("bob@acme.io", "view", "secrets")

    assert not file.exists()


def test_default_is_off(make_site: MakeSite, sqlite_url: str, file: Path) -> None:
    """Without a setting no decision is logged."""
    site = make_site(sqlite_url, decision_log_file=file)
    with Client(site.address, site.tokens["OWNER"]) as client:
        client.check("bob@acme.io", "view", "secrets")

    assert not file.exists()


def test_refused_request_is_not_logged_as_a_decision(start_site: StartSite, file: Path) -> None:
    """A caller without the permission to ask gets no decision, and nothing is logged."""
    site = start_site("all")
    with Client(site.address, site.tokens["VIEWER"]) as client, pytest.raises(PermissionMissing):
        client.check("ann@acme.io", "view", "secrets")

    assert lines_of(file) == []


# What of them


def test_log_line_of_a_check_is_complete(start_site: StartSite, file: Path) -> None:
    """One line holds the subject, the question, the answer with its reason and versions, the time, and the call."""
    site = start_site("all")

    answer = pb.CheckResponse.FromString(
        ask(
            site,
            CHECK,
            pb.CheckRequest(
                subject="VIEWER@acme.io", action="view", resource='secrets/größe "a"\\b', scope="projects/billing"
            ),
            "call-17",
        )
    )

    (line,) = lines_of(file)
    assert list(line) == FIELDS
    at = datetime.fromisoformat(str(line.pop("time")))
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == {
        "organization": "acme",
        "subject": "user:viewer@acme.io",
        "action": "view",
        "resource": 'secrets/größe "a"\\b',
        "scope": "projects/billing",
        "decision": "allow",
        "reason": "GRANTED",
        "assignment_id": "",
        "policy_version": answer.policy_version,
        "revision": answer.revision,
        "call_id": "call-17",
    }


def test_log_lines_of_a_batch_have_the_same_call_id(start_site: StartSite, file: Path) -> None:
    """A batch writes a line for each question, in order, with one revision, policy and call id."""
    site = start_site("all")
    user_id = site.members["ADMIN"].user_id
    asked = [(f"user:{user_id}", "invite", "members"), ("role:VIEWER", "fly", "secrets"), ("x@y.z", "view", "secrets")]

    raw = ask(
        site,
        BATCH,
        pb.BatchCheckRequest(checks=[pb.BatchCheckItem(subject=s, action=a, resource=r) for s, a, r in asked]),
        "batch-1",
    )

    answer = pb.BatchCheckResponse.FromString(raw)
    lines = lines_of(file)
    assert all(list(line) == FIELDS for line in lines)
    noted = [(line["subject"], line["action"], line["resource"], line["decision"], line["reason"]) for line in lines]
    assert noted == [
        (f"user:{user_id}", "invite", "members", "allow", "GRANTED"),
        ("role:VIEWER", "fly", "secrets", "deny", "UNKNOWN_ACTION"),
        ("user:x@y.z", "view", "secrets", "deny", "NOT_A_MEMBER"),
    ]
    together = {(line["revision"], line["policy_version"], line["call_id"]) for line in lines}
    assert together == {(answer.revision, answer.policy_version, "batch-1")}


def test_presented_token_is_logged_by_its_id(start_site: StartSite, file: Path) -> None:
    """A live, a dead or a malformed token: its id at most is logged, and no part of the secret."""
    site = start_site("all")
    live, dead = site.tokens["VIEWER"], site.tokens["ADMIN"]
    ids = [token.split("_")[1] for token in (live, dead)]
    operator_tokens.revoke(site.storage, AuditLog(server_key.read(site.settings.key_file)), "acme", ids[1])
    mistyped = live[:-1] + ("0" if live[-1] != "0" else "1")
    presented = [live, dead, mistyped]

    for token in presented:
        ask(site, CHECK, pb.CheckRequest(subject_token=token, action="view", resource="secrets"), "x")
    items = [pb.BatchCheckItem(subject_token=token, action="view", resource="secrets") for token in presented]
    ask(site, BATCH, pb.BatchCheckRequest(checks=items), "x")

    expected = [(f"token:{ids[0]}", "GRANTED"), (f"token:{ids[1]}", "TOKEN_INVALID"), ("token:", "TOKEN_INVALID")]
    assert [(line["subject"], line["reason"]) for line in lines_of(file)] == expected * 2
    text = file.read_text()
    assert not any(token.rpartition("_")[2][:12] in text for token in presented)


def test_denial_by_a_restriction_is_logged_as_such(start_site: StartSite, file: Path) -> None:
    """A deny by a token's restriction has its own reason."""
    site = start_site("denies")
    with Client(site.address, site.tokens["OWNER"]) as client:
        made = client.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
        client.check_token(made.secret, "view", "secrets")

    (line,) = lines_of(file)
    assert (line["subject"], line["reason"]) == (f"token:{made.token.id}", "TOKEN_SCOPE")


# The file


def test_file_is_readable_by_its_user_only(start_site: StartSite, file: Path) -> None:
    """The file has mode 0600, whatever the umask; so have the files after a rotation."""
    before = os.umask(0)
    try:
        site = start_site("all", decision_log_megabytes=1)
        for number in range(2):
            ask(site, BATCH, long_batch(number), "x")
    finally:
        os.umask(before)

    files = list(file.parent.glob("decisions.jsonl*"))
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_file_is_rotated_by_size_without_losing_a_line(start_site: StartSite, file: Path) -> None:
    """Concurrent callers write complete lines, into files that stay below the limit."""
    site = start_site("all", decision_log_megabytes=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ask(site, BATCH, long_batch(number), str(number)), range(4)))

    files = list(file.parent.glob("decisions.jsonl*"))
    noted = [line["resource"] for path in files for line in lines_of(path)]
    assert len(files) > 4
    assert max(path.stat().st_size for path in files) <= 1_000_000
    assert len(noted) == len(set(noted)) == 4000


def test_oldest_files_are_deleted(start_site: StartSite, file: Path) -> None:
    """Rotation keeps the number of files that the setting says, the newest of them."""
    site = start_site("all", decision_log_megabytes=1, decision_log_files=2)
    for number in range(3):
        ask(site, BATCH, long_batch(number), str(number))

    kept = sorted(path.name for path in file.parent.glob("decisions.jsonl*"))
    assert kept == ["decisions.jsonl", "decisions.jsonl.1"]
    assert {line["call_id"] for name in kept for line in lines_of(file.parent / name)} <= {"1", "2"}
    assert lines_of(file)[-1]["resource"] == long_batch(2).checks[-1].resource


def test_restarted_server_appends_to_the_file(start_site: StartSite, file: Path) -> None:
    """A restarted server appends to the file: earlier lines stay."""
    site = start_site("all")
    question = pb.CheckRequest(subject="role:VIEWER", action="view", resource="secrets")
    ask(site, CHECK, question, "first")
    site.server.stop(0)
    restarted = build_server(site.settings.model_copy(update={"listen": site.address}))
    restarted.start()
    try:
        ask(site, CHECK, question, "second")
    finally:
        restarted.stop(0)

    assert [line["call_id"] for line in lines_of(file)] == ["first", "second"]


@pytest.mark.parametrize("place", ["missing/decisions.jsonl", "plain/decisions.jsonl", "folder"])
def test_file_that_cannot_be_written_is_reported_at_the_start(
    start_site: StartSite, tmp_path: Path, place: str
) -> None:
    """Where the folder is missing or a file, or the file is a folder, the server doesn't start and names the file."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError) as caught:
        start_site("denies", decision_log_file=tmp_path / place)

    assert str(tmp_path / place) in caught.value.message


def test_file_that_cannot_be_written_does_not_matter_where_it_is_off(start_site: StartSite, tmp_path: Path) -> None:
    """With the decision log off, its path isn't checked."""
    site = start_site("off", decision_log_file=tmp_path / "missing" / "decisions.jsonl")

    assert ask(site, CHECK, pb.CheckRequest(subject="role:VIEWER", action="view", resource="secrets"), "x")


def test_full_disk_stops_no_decision(start_site: StartSite, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk stops no decision: the server logs an error, continues to answer, and logs decisions again later."""
    site = start_site("all")
    noted = site.core.decisions._file
    assert noted is not None
    assert noted.stream is not None
    with (
        Client(site.address, site.tokens["OWNER"]) as client,
        file.open("a") as room,
        Path("/dev/full").open("a") as full,
    ):
        os.dup2(full.fileno(), noted.stream.fileno())
        answers = [bool(client.check(f"{who}@acme.io", "view", "secrets")) for who in ("viewer", "bob", "ann")]
        assert site.core.decisions.flush()
        os.dup2(room.fileno(), noted.stream.fileno())
        client.check("contributor@acme.io", "view", "secrets")

    assert answers == [True, False, True]
    assert "decision log can't be written" in capsys.readouterr().out
    assert lines_of(file)[-1]["subject"] == "user:contributor@acme.io"


def test_decision_that_cannot_be_encoded_loses_no_other(
    start_site: StartSite, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one line doesn't end the thread that writes all."""
    put_down = decision_log._line

    def fail_at_one(*arguments: Any) -> bytes:
        if arguments[-1] == "spoilt":
            raise ValueError(arguments)
        return put_down(*arguments)

    monkeypatch.setattr(decision_log, "_line", fail_at_one)
    site = start_site("all")
    question = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members")
    ask(site, CHECK, question, "spoilt")
    ask(site, CHECK, question, "whole")

    assert [line["call_id"] for line in lines_of(file)] == ["whole"]


def test_server_with_a_full_disk_stops_in_order(start_site: StartSite) -> None:
    """A server whose disk is full stops without an error."""
    site = start_site("all", decision_log_file=Path("/dev/full"))
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert client.check("viewer@acme.io", "view", "secrets")

    site.server.stop(0)


def test_two_servers_do_not_share_a_file(start_site: StartSite, file: Path) -> None:
    """Two servers can't share a file: they would rotate each other's lines away."""
    start_site("all")

    with pytest.raises(ConfigError, match="Another server writes the decision log"):
        DecisionLog(Settings(decision_log="all", decision_log_file=file))


def test_server_that_cannot_be_built_leaves_the_file(start_site: StartSite, file: Path) -> None:
    """A server whose port is in use leaves its file to the next attempt, on another port."""
    other = start_site("off")
    settings = other.settings.model_copy(update={"decision_log": "all"})

    with pytest.raises(ConfigError, match="can't be listened on") as failed:
        build_server(settings.model_copy(update={"listen": other.address}))
    build_server(settings).stop(0)

    assert file.exists()
    # The error holds the frames of the failed attempt, which would be collected otherwise.
    assert failed.value.__traceback__

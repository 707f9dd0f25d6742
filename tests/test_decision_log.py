"""The decision log: which decisions are noted, what of them, and what becomes of the file."""

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
from conftest import MakeSite, Site, wait_until

from rolecall import decision_log, keys, operator
from rolecall.audit import AuditLog
from rolecall.client import Client
from rolecall.config import Settings
from rolecall.decision_log import EVERY_SECONDS, DecisionLog
from rolecall.errors import ConfigError, PermissionMissing
from rolecall.server import build_server
from rolecall.v1 import authorization_pb2 as pb

BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"
CHECK = "/rolecall.v1.AuthorizationService/Check"
FIELDS = [
    "time",
    "organization",
    "subject",
    "action",
    "resource",
    "decision",
    "reason",
    "policy_version",
    "revision",
    "request_id",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the decisions are noted."""
    return tmp_path / "decisions.jsonl"


Noting = Callable[..., Site]


@pytest.fixture
def noting(make_site: MakeSite, sqlite_url: str, file: Path) -> Noting:
    """Starts a server that notes decisions there."""

    def start(mode: str, **settings: object) -> Site:
        return make_site(sqlite_url, **{"decision_log": mode, "decision_log_file": file, **settings})

    return start


def lines_of(file: Path) -> list[dict[str, object]]:
    """What was noted."""
    # They are written soon.
    time.sleep(5 * EVERY_SECONDS)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ask(site: Site, method: str, request: pb.CheckRequest | pb.BatchCheckRequest, request_id: str) -> bytes:
    """The raw answer to the owner's call with this id."""
    call = site.channel().unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", f"Bearer {site.tokens['OWNER']}"), ("x-request-id", request_id))
    answer = bytes(call(request.SerializeToString(), metadata=metadata, timeout=30))
    # It is noted soon.
    wait_until(lambda: not site.server._core.decisions._waiting)
    return answer


def long_batch(number: int) -> pb.BatchCheckRequest:
    """A thousand questions whose notes take more than a megabyte."""
    resources = (f"secrets/{number}/{item}/{'x' * 1000}" for item in range(1000))
    return pb.BatchCheckRequest(
        checks=[pb.BatchCheckItem(subject="role:VIEWER", action="view", resource=resource) for resource in resources]
    )


# Which decisions


@pytest.mark.parametrize(
    ("mode", "noted"),
    [("denies", ["deny", "deny"]), ("all", ["allow", "deny", "allow", "deny"])],
)
def test_mode_says_which_decisions_are_noted(noting: Noting, file: Path, mode: str, noted: list[str]) -> None:
    """`denies` notes the denials of Check and BatchCheck, `all` every decision, in the order of their making."""
    site = noting(mode)
    with Client(site.address, site.tokens["OWNER"]) as client:
        client.check("viewer@acme.io", "view", "secrets")
        client.check("viewernosecrets@acme.io", "view", "secrets")
        client.batch_check([("ann@acme.io", "view", "secrets"), ("bob@acme.io", "view", "secrets")])

    assert [line["decision"] for line in lines_of(file)] == noted


def test_off_makes_no_file(noting: Noting, file: Path) -> None:
    """Whoever doesn't want the log has no file of it."""
    site = noting("off")
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert not client.check("bob@acme.io", "view", "secrets")

    assert not file.exists()


def test_default_is_off(make_site: MakeSite, sqlite_url: str, file: Path) -> None:
    """Without a setting nothing is noted."""
    site = make_site(sqlite_url, decision_log_file=file)
    with Client(site.address, site.tokens["OWNER"]) as client:
        client.check("bob@acme.io", "view", "secrets")

    assert not file.exists()


def test_refused_question_is_no_decision(noting: Noting, file: Path) -> None:
    """Who may not ask gets no decision, and none is noted."""
    site = noting("all")
    with Client(site.address, site.tokens["VIEWER"]) as client, pytest.raises(PermissionMissing):
        client.check("ann@acme.io", "view", "secrets")

    assert lines_of(file) == []


# What of them


def test_note_of_a_check_is_complete(noting: Noting, file: Path) -> None:
    """One line tells who was asked about, what, the answer with its reason and versions, when, and in which call."""
    site = noting("all")

    answer = pb.CheckResponse.FromString(
        ask(
            site,
            CHECK,
            pb.CheckRequest(subject="VIEWER@acme.io", action="view", resource='secrets/größe "a"\\b'),
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
        "decision": "allow",
        "reason": "GRANTED",
        "policy_version": answer.policy_version,
        "revision": answer.revision,
        "request_id": "call-17",
    }


def test_notes_of_a_batch_share_their_call(noting: Noting, file: Path) -> None:
    """A batch leaves a line for each question, in order, with one revision, policy and request id."""
    site = noting("all")
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
    together = {(line["revision"], line["policy_version"], line["request_id"]) for line in lines}
    assert together == {(answer.revision, answer.policy_version, "batch-1")}


def test_presented_token_is_noted_by_its_id(noting: Noting, file: Path) -> None:
    """Whether it is live, dead or malformed: the id at most, and no part of the secret."""
    site = noting("all")
    live, dead = site.tokens["VIEWER"], site.tokens["ADMIN"]
    ids = [token.split("_")[1] for token in (live, dead)]
    operator.revoke(site.storage, AuditLog(keys.read(site.settings.key_file)), "acme", ids[1])
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


def test_token_cut_down_is_noted_as_such(noting: Noting, file: Path) -> None:
    """A deny by a token's restriction has its own reason."""
    site = noting("denies")
    with Client(site.address, site.tokens["OWNER"]) as client:
        made = client.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
        client.check_token(made.secret, "view", "secrets")

    (line,) = lines_of(file)
    assert (line["subject"], line["reason"]) == (f"token:{made.token.id}", "TOKEN_SCOPE")


# The file


def test_file_is_for_its_user_only(noting: Noting, file: Path) -> None:
    """Mode 0600, whatever the umask; the files after a rotation too."""
    before = os.umask(0)
    try:
        site = noting("all", decision_log_megabytes=1)
        for number in range(2):
            ask(site, BATCH, long_batch(number), "x")
    finally:
        os.umask(before)

    files = list(file.parent.glob("decisions.jsonl*"))
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_file_is_rotated_by_size_without_losing_a_line(noting: Noting, file: Path) -> None:
    """Callers at once write whole lines, into files that stay below the limit."""
    site = noting("all", decision_log_megabytes=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ask(site, BATCH, long_batch(number), str(number)), range(4)))

    files = list(file.parent.glob("decisions.jsonl*"))
    noted = [line["resource"] for path in files for line in lines_of(path)]
    assert len(files) > 4
    assert max(path.stat().st_size for path in files) <= 1_000_000
    assert len(noted) == len(set(noted)) == 4000


def test_oldest_files_go(noting: Noting, file: Path) -> None:
    """As many files are kept as the setting says, the newest of them."""
    site = noting("all", decision_log_megabytes=1, decision_log_files=2)
    for number in range(3):
        ask(site, BATCH, long_batch(number), str(number))

    kept = sorted(path.name for path in file.parent.glob("decisions.jsonl*"))
    assert kept == ["decisions.jsonl", "decisions.jsonl.1"]
    assert {line["request_id"] for name in kept for line in lines_of(file.parent / name)} <= {"1", "2"}
    assert lines_of(file)[-1]["resource"] == long_batch(2).checks[-1].resource


def test_restarted_server_goes_on_in_the_file(noting: Noting, file: Path) -> None:
    """What was noted before stays."""
    site = noting("all")
    question = pb.CheckRequest(subject="role:VIEWER", action="view", resource="secrets")
    ask(site, CHECK, question, "first")
    site.server.stop(0)
    restarted = build_server(site.settings.model_copy(update={"listen": site.address}))
    restarted.start()
    try:
        ask(site, CHECK, question, "second")
    finally:
        restarted.stop(0)

    assert [line["request_id"] for line in lines_of(file)] == ["first", "second"]


@pytest.mark.parametrize("place", ["missing/decisions.jsonl", "plain/decisions.jsonl", "folder"])
def test_file_that_cannot_be_written_is_told_at_the_start(noting: Noting, tmp_path: Path, place: str) -> None:
    """No folder, a file in its place, or a folder in the file's: the server doesn't start, and says which file."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError) as caught:
        noting("denies", decision_log_file=tmp_path / place)

    assert str(tmp_path / place) in caught.value.message


def test_file_that_cannot_be_written_does_not_matter_where_it_is_off(noting: Noting, tmp_path: Path) -> None:
    """Without a decision log its place isn't looked at."""
    site = noting("off", decision_log_file=tmp_path / "missing" / "decisions.jsonl")

    assert ask(site, CHECK, pb.CheckRequest(subject="role:VIEWER", action="view", resource="secrets"), "x")


def test_full_disk_stops_no_decision(noting: Noting, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing more fits on the disk, the server's log tells of it, and the answers go on, noted later again."""
    site = noting("all")
    noted = site.server._core.decisions._file
    assert noted is not None
    assert noted.stream is not None
    with (
        Client(site.address, site.tokens["OWNER"]) as client,
        file.open("a") as room,
        Path("/dev/full").open("a") as full,
    ):
        os.dup2(full.fileno(), noted.stream.fileno())
        answers = [bool(client.check(f"{who}@acme.io", "view", "secrets")) for who in ("viewer", "bob", "ann")]
        wait_until(lambda: not site.server._core.decisions._waiting)
        os.dup2(room.fileno(), noted.stream.fileno())
        client.check("contributor@acme.io", "view", "secrets")

    assert answers == [True, False, True]
    assert "the decision log can't be written" in capsys.readouterr().out
    assert lines_of(file)[-1]["subject"] == "user:contributor@acme.io"


def test_a_decision_that_cannot_be_put_down_costs_no_other(
    noting: Noting, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one line doesn't end the thread that writes all."""
    put_down = decision_log._line

    def fail_at_one(*told: Any) -> str:
        if told[-1] == "spoilt":
            raise ValueError(told)
        return put_down(*told)

    monkeypatch.setattr(decision_log, "_line", fail_at_one)
    site = noting("all")
    question = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members")
    ask(site, CHECK, question, "spoilt")
    ask(site, CHECK, question, "whole")

    assert [line["request_id"] for line in lines_of(file)] == ["whole"]


def test_server_with_a_full_disk_stops_in_order(noting: Noting) -> None:
    """Where no decision can be noted any more, the server still stops without an error."""
    site = noting("all", decision_log_file=Path("/dev/full"))
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert client.check("viewer@acme.io", "view", "secrets")

    site.server.stop(0)


def test_two_servers_do_not_share_a_file(noting: Noting, file: Path) -> None:
    """They would rotate each other's lines away."""
    noting("all")

    with pytest.raises(ConfigError, match="Another server writes the decision log"):
        DecisionLog(Settings(decision_log="all", decision_log_file=file))

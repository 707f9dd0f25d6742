"""ValidatePolicy over gRPC: the checks of a reload, for files that are in no folder, without any effect."""

from pathlib import Path

import grpc
import pytest

from rolecall import Client
from rolecall.domain import CredentialKind
from rolecall.policy import PolicyFiles
from rolecall.services import organizations
from rolecall.v1 import policy_pb2 as pb
from support.credentials import put_credential
from support.people import PeopleCalls
from support.rows import nothing_written
from support.server_calls import DENIED, INVALID
from support.sites import MakeSite, Site, add_member
from support.waiting import wait_until


def files_of(folder: Path) -> PolicyFiles:
    """Return the texts of a policy folder."""
    return PolicyFiles(*((folder / name).read_text() for name in ("model.conf", "policy.csv", "policy_test.csv")))


def validate(calls: PeopleCalls, files: PolicyFiles, token: str = "OWNER") -> pb.ValidatePolicyResponse:
    """Return the answer about these files."""
    answer = calls.send(token, request(files))
    assert isinstance(answer, pb.ValidatePolicyResponse)
    return answer


def request(files: PolicyFiles) -> pb.ValidatePolicyRequest:
    """Return the request for these files."""
    return pb.ValidatePolicyRequest(model=files.model, policy=files.policy, tests=files.tests)


def test_an_edit_that_would_be_accepted(site: Site) -> None:
    """The version is the one that a reload gives it; nothing is changed, in the database or in force."""
    calls, before = PeopleCalls(site), site.server.live.in_force
    files = files_of(site.policy_folder)
    edited = files._replace(policy=files.policy + "# edited\n")
    with nothing_written(site):
        answer = validate(calls, edited)

    assert answer.accepted
    assert (answer.finding_count, list(answer.findings)) == (0, [])
    assert min(answer.test_count, answer.comparison_count) > 0
    assert answer.policy_version == edited.version != before.policy.version
    assert site.server.live.in_force is before
    (site.policy_folder / "policy.csv").write_text(edited.policy)
    wait_until(lambda: site.server.live.in_force.policy.version == answer.policy_version)


def test_windows_line_ends_are_the_same_policy(sqlite_site: Site) -> None:
    """A byte order mark and CRLF, which a program that reads the files as they are passes on, change nothing."""
    files = files_of(sqlite_site.policy_folder)
    windows = PolicyFiles(*("\ufeff" + text.replace("\n", "\r\n") for text in files))

    answer = validate(PeopleCalls(sqlite_site), windows)

    assert answer.accepted
    assert answer.policy_version == files.version


def test_errors_have_their_places_and_come_first(sqlite_site: Site) -> None:
    """Findings have file, line and fix as those of a reload; a hundred warnings don't hide the error."""
    files = files_of(sqlite_site.policy_folder)
    warned = "".join(f"p, VIEWER, straße{number}, view, allow\n" for number in range(120))
    line = len(files.policy.splitlines()) + 121
    edited = files._replace(policy=f"{files.policy}{warned}p, VIEWER, secrets, view, alow\n")

    answer = validate(PeopleCalls(sqlite_site), edited)

    assert not answer.accepted
    assert (answer.findings[0].file, answer.findings[0].line, answer.findings[0].blocking) == ("policy.csv", line, True)
    assert answer.findings[0].fix == "Write `allow` or `deny`, in lower case."
    assert len(answer.findings) == 100
    assert answer.finding_count > 100


def test_a_role_that_is_held_is_kept(make_site: MakeSite, database_url: str) -> None:
    """The gate's answer is that of a roll-out, and says how to move the holders; then the policy is accepted."""
    site = make_site(database_url)
    calls, files = PeopleCalls(site), files_of(site.policy_folder)
    renamed = PolicyFiles(*(text.replace("CONTRIBUTOR", "EDITOR") for text in files))

    refused = validate(calls, renamed)
    both = files._replace(policy=files.policy + "g, EDITOR, CONTRIBUTOR\np, EDITOR, drafts, view, allow\n")
    (site.policy_folder / "policy.csv").write_text(both.policy)
    wait_until(lambda: "EDITOR" in site.server.live.in_force.policy.roles)
    with Client(site.address, site.tokens["OWNER"]) as client:
        moved = client.members.move("CONTRIBUTOR", "EDITOR")
    accepted = validate(calls, renamed)

    assert not refused.accepted
    assert "Members or tokens have the role `CONTRIBUTOR`" in refused.findings[0].message
    assert "`rolecall members move CONTRIBUTOR ROLE`" in refused.findings[0].fix
    assert moved.member_count == 1
    assert accepted.accepted, accepted.findings


def test_other_organizations_are_not_named(sqlite_site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """Roles held in other organizations keep a policy out, and no name of theirs is in the answer."""
    site = sqlite_site
    organizations.create(site.storage, site.log, site.server.live.in_force.policy, "globex", "gus@globex.io")
    add_member(site.storage, "globex", "hank@globex.io", "RETIRED")
    files = files_of(site.policy_folder)

    answer = validate(PeopleCalls(site), files)

    assert not answer.accepted
    assert "`RETIRED`" in answer.findings[0].message
    assert "globex" not in str(answer)


def test_only_who_manages_the_policy_may_validate_one(sqlite_site: Site) -> None:
    """Others are refused before anything is built: they may see the policy in force, and can't probe who holds what."""
    calls, files = PeopleCalls(sqlite_site), files_of(sqlite_site.policy_folder)
    narrow = put_credential(sqlite_site, sqlite_site.members["OWNER"].user_id, only=(("policy", "view"),))
    program = put_credential(sqlite_site, None, kind=CredentialKind.ORGANIZATION, role="ADMIN")

    for token in ("ADMIN", "VIEWER", narrow, program):
        failure = calls.refused(token, request(files))
        assert (failure.code, failure.reason) == (DENIED, "PERMISSION_MISSING")
    manager = put_credential(sqlite_site, sqlite_site.members["OWNER"].user_id, only=(("policy", "manage"),))
    assert validate(calls, files, manager).accepted


@pytest.mark.parametrize("field", ["model", "policy", "tests"])
def test_an_empty_file_is_named(sqlite_site: Site, field: str) -> None:
    """A file that is missing or blank is the field at fault."""
    files = files_of(sqlite_site.policy_folder)._replace(**{field: "\r\n \n"})

    failure = PeopleCalls(sqlite_site).refused("OWNER", request(files))

    assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", field)


def test_the_size_is_bounded(sqlite_site: Site) -> None:
    """Files of more than 4 MiB are refused unread."""
    files = files_of(sqlite_site.policy_folder)._replace(policy="#" * (5 * 1024 * 1024))

    failure = PeopleCalls(sqlite_site).refused("OWNER", request(files))

    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_SIZE")


def test_one_is_validated_at_a_time(sqlite_site: Site) -> None:
    """While a policy is validated, others are refused at once, as each takes a processor for seconds."""
    calls, files = PeopleCalls(sqlite_site), files_of(sqlite_site.policy_folder)
    validations = sqlite_site.core.services[pb.DESCRIPTOR]._policies._validations
    with validations:
        failure = calls.refused("OWNER", request(files))

    assert failure.reason == "RATE_LIMITED"
    assert validate(calls, files).accepted

"""Client library against a real server: its calls, its errors, and its connection."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from rolecall.client import Client
from rolecall.domain import Effect, Permission, Reason
from rolecall.errors import (
    BatchSize,
    CallFailed,
    ConfigError,
    InvalidField,
    OrganizationNotFound,
    PermissionMissing,
    RevisionNotReached,
    RolecallError,
    UnauthenticatedCredential,
)
from rolecall.server import build_server
from rolecall.services import operator_tokens
from support.sites import MakeSite, Site, add_member

ROLES = ["OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"]


@pytest.fixture
def client(sqlite_site: Site) -> Iterator[Client]:
    """A connection to a running server, as the owner."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


@pytest.fixture
def paged(sqlite_site: Site) -> Callable[[int], Client]:
    """Makes connections that fetch this many entries of a list at once."""

    def connect(page_size: int) -> Client:
        client = Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "acme", page_size=page_size)
        return sqlite_site.channels.enter_context(client)

    return connect


@pytest.fixture
def unused_address() -> str:
    """An address on this machine that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(address: str) -> str:
    """The port of host:port."""
    return address.rpartition(":")[2]


def answers_within(seconds: float, client: Client) -> bool:
    """Whether the client gets an answer within this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(CallFailed):
            return bool(client.check("ann@acme.io", "view", "secrets"))
    return False


# What may be asked


def test_check_answers_with_reason_role_and_versions(client: Client, sqlite_site: Site) -> None:
    """An allow names the role, and the revision and policy that it rests on."""
    result = client.check("viewer@acme.io", "view", "secrets/billing")

    assert result
    assert (result.decision, result.reason, result.role) == (Effect.ALLOW, Reason.GRANTED, "VIEWER")
    assert result.policy_version == sqlite_site.server.live.in_force.policy.version
    assert result.revision > 0
    assert result.explanation is None


def test_denied_check_is_false_in_a_condition(client: Client) -> None:
    """`if client.check(...)` is false for a denial, though the result is an object."""
    result = client.check("viewernosecrets@acme.io", "view", "secrets/billing")

    assert not result
    assert (result.decision, result.reason, result.role) == (Effect.DENY, Reason.NOT_GRANTED, "VIEWERNOSECRETS")


def test_check_of_an_unknown_subject_is_false(client: Client) -> None:
    """A subject that is not a member is allowed nothing, and has no role."""
    result = client.check("bob@acme.io", "view", "secrets")

    assert not result
    assert (result.reason, result.role) == (Reason.NOT_A_MEMBER, "")


def test_explained_deny_names_what_was_missing(client: Client) -> None:
    """An explanation arrives with all its fields."""
    result = client.check("viewernosecrets@acme.io", "view", "secrets", explain=True)

    assert result.explanation is not None
    assert result.explanation.nearest_miss == "p, VIEWER, secrets, view, allow"
    assert result.explanation.nearest_miss_line > 0
    assert result.explanation.roles_that_pass == tuple(ROLES[:4])


def test_explained_allow_names_its_rule(client: Client) -> None:
    """An explanation holds the rule's file and line, and the roles through which it applies."""
    result = client.check("ann@acme.io", "view", "secrets", explain=True)

    assert result.explanation is not None
    assert result.explanation.rule == "p, VIEWER, secrets, view, allow"
    assert result.explanation.file == "policy.csv"
    assert result.explanation.line > 0
    assert result.explanation.role_chain == tuple(ROLES[:4])


def test_check_token_asks_about_its_holder(client: Client, sqlite_site: Site) -> None:
    """A service checks what the holder of a token that was presented to it may do."""
    allowed = client.check_token(sqlite_site.tokens["VIEWER"], "view", "secrets")
    denied = client.check_token(sqlite_site.tokens["VIEWERNOSECRETS"], "view", "secrets")

    assert allowed
    assert (allowed.role, denied.role) == ("VIEWER", "VIEWERNOSECRETS")
    assert not denied


def test_check_token_of_a_dead_or_malformed_token_is_false(client: Client, sqlite_site: Site) -> None:
    """A revoked or malformed token is a denial, not an error."""
    revoked = sqlite_site.tokens["VIEWER"]
    operator_tokens.revoke(sqlite_site.storage, sqlite_site.log, "acme", revoked.split("_")[1])

    results = [client.check_token(token, "view", "members") for token in (revoked, "nonsense", "with\nline break")]

    assert [result.reason for result in results] == [Reason.TOKEN_INVALID] * 3
    assert not any(results)


def test_batch_check_keeps_the_order(client: Client) -> None:
    """Many questions get as many answers, each at its place; a malformed one denies itself alone."""
    results = client.batch_check(
        [
            ("viewer@acme.io", "view", "secrets"),
            ("viewernosecrets@acme.io", "view", "secrets"),
            ("viewer", "view", "secrets"),
            ("role:ADMIN", "invite", "members"),
        ]
    )

    assert [bool(result) for result in results] == [True, False, False, True]
    assert [result.error.field if result.error else "" for result in results] == ["", "", "subject", ""]
    assert len({(result.revision, result.policy_version) for result in results}) == 1


def test_permissions_come_through_all_pages(paged: Callable[[int], Client]) -> None:
    """The list of permissions is the same for any page size, without gaps and duplicates."""
    whole, even, uneven = (list(paged(size).permissions("role:VIEWER")) for size in (1000, 2, 4))

    assert len(whole) == 6
    assert Permission("secrets", "view", Effect.ALLOW) in whole
    assert even == whole
    assert uneven == whole


def test_pages_are_fetched_lazily(paged: Callable[[int], Client]) -> None:
    """Stopping after the first permission fetches no further page: the server may be gone by then."""
    client = paged(1)
    found = client.permissions("role:VIEWER")

    first = next(found)
    client.close()

    assert first.effect is Effect.ALLOW
    with pytest.raises(Exception, match="closed"):
        next(found)


def test_unknown_subject_has_no_permissions(client: Client) -> None:
    """A subject that is not a member has no permissions."""
    assert list(client.permissions("bob@acme.io")) == []


def test_deny_rules_have_the_effect_deny(sqlite_site: Site, client: Client) -> None:
    """The client's permission of a deny rule has the effect deny."""
    with (sqlite_site.policy_folder / "policy.csv").open("a") as file:
        file.write("p, VIEWER, secrets/payroll, *, deny\n")
    until = time.monotonic() + 20
    while len(rules := list(client.permissions("role:VIEWER"))) == 6 and time.monotonic() < until:
        time.sleep(0.05)

    assert Permission("secrets/payroll", "*", Effect.DENY) in rules


def test_subjects_come_through_all_pages(sqlite_site: Site, paged: Callable[[int], Client]) -> None:
    """The members with a permission are listed completely and by address, for any page size."""
    extra = add_member(sqlite_site.storage, "acme", "zoe@acme.io", "VIEWER")
    whole, pages = (list(paged(size).subjects("view", "secrets")) for size in (1000, 2))

    expected = [*(sqlite_site.members[role] for role in ROLES[:4]), extra]
    assert whole == sorted(expected, key=lambda member: member.email)
    assert pages == whole


def test_roles_come_through_all_pages(paged: Callable[[int], Client]) -> None:
    """Each role of the policy comes once, with its own rules and parents."""
    whole = {role.name: role for role in paged(1000).roles()}
    pages = list(paged(2).roles())

    assert sorted(whole) == sorted(ROLES)
    assert [role.name for role in pages] == list(whole)
    assert whole["VIEWER"].parents == ("VIEWERNOSECRETS",)
    assert whole["VIEWER"].permissions == (Permission("secrets", "view", Effect.ALLOW),)
    assert [name for name, role in whole.items() if role.updates_owners] == ["OWNER"]


def test_policy_is_described(client: Client, sqlite_site: Site) -> None:
    """The policy in force is described with its version and size, and that nothing was refused."""
    answer = client.policy()

    assert answer.policy.policy_version == sqlite_site.server.live.in_force.policy.version
    assert (answer.policy.role_count, answer.policy.rule_count) == (5, 47)
    assert not answer.HasField("refusal")


def test_revision_of_an_answer_may_be_requested(client: Client) -> None:
    """A request with the revision of an earlier answer gets an answer at least as fresh."""
    revision = client.check("ann@acme.io", "view", "secrets").revision

    later = client.check("ann@acme.io", "view", "secrets", at_least_revision=revision)

    assert later.revision >= revision


# Errors


def test_refused_token_is_an_unauthenticated_credential(sqlite_site: Site) -> None:
    """An unknown token is UnauthenticatedCredential, with the call's id to search a log for."""
    with Client(sqlite_site.address, "rcp_unknown") as client, pytest.raises(UnauthenticatedCredential) as caught:
        client.check("ann@acme.io", "view", "secrets")

    assert caught.value.reason == "UNAUTHENTICATED_CREDENTIAL"
    assert caught.value.metadata["call_id"]
    assert "rcp_unknown" not in str(caught.value)


@pytest.mark.parametrize(
    ("question", "field"),
    [
        (("ann", "view", "secrets"), "subject"),
        (("ann@acme.io", "*", "secrets"), "action"),
        (("ann@acme.io", "view", "secrets//billing"), "resource"),
    ],
)
def test_invalid_field_is_named(client: Client, question: tuple[str, str, str], field: str) -> None:
    """An invalid request raises InvalidField with the field at fault."""
    with pytest.raises(InvalidField) as caught:
        client.check(*question)

    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)
    assert caught.value.message.startswith(field)


def test_missing_permission_is_named(sqlite_site: Site) -> None:
    """A caller that may not ask about others gets the missing permission, and the roles that have it."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["VIEWER"]) as client,
        pytest.raises(PermissionMissing) as caught,
    ):
        client.check("ann@acme.io", "view", "secrets")

    assert caught.value.reason == "PERMISSION_MISSING"
    assert (caught.value.metadata["resource"], caught.value.metadata["action"]) == ("authorization", "check")
    assert "OWNER, ADMIN, CONTRIBUTOR" in caught.value.message


def test_other_organization_is_not_found(sqlite_site: Site) -> None:
    """A client that is set up for somebody else's organization gets no answer from it."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "beta") as client,
        pytest.raises(OrganizationNotFound) as caught,
    ):
        client.check("ann@acme.io", "view", "secrets")

    assert caught.value.reason == "ORGANIZATION_NOT_FOUND"


def test_empty_batch_is_refused_with_its_bounds(client: Client) -> None:
    """The error's metadata is complete: the message's size and the maximum size."""
    with pytest.raises(BatchSize) as caught:
        client.batch_check([])

    assert caught.value.field == "checks"
    assert (caught.value.metadata["size"], caught.value.metadata["maximum"]) == ("0", "1000")


def test_revision_of_the_future_is_requested_five_times(client: Client) -> None:
    """The client asks five times for a future revision; then it raises, rather than answer with an old one."""
    with pytest.raises(InvalidField) as earlier:
        client.check("ann", "view", "secrets")
    with pytest.raises(RevisionNotReached) as caught:
        client.check("ann@acme.io", "view", "secrets", at_least_revision=10**9)

    # The server numbers its calls.
    numbers = [int(error.value.metadata["call_id"].rpartition("-")[2]) for error in (earlier, caught)]
    assert caught.value.metadata["at_least_revision"] == "1000000000"
    assert numbers[1] - numbers[0] == 5


def test_all_errors_have_one_base_class(unused_address: str) -> None:
    """`except RolecallError` is enough for every failure that this library raises."""
    with Client(unused_address, "token", timeout=2) as client, pytest.raises(RolecallError):
        client.check("ann@acme.io", "view", "secrets")


# Servers that don't answer


def test_dead_server_is_reported_within_the_timeout(unused_address: str) -> None:
    """A call to an address without a listener fails within the timeout, and names the address."""
    began = time.monotonic()
    with Client(unused_address, "token", timeout=2) as client, pytest.raises(CallFailed) as caught:
        client.check("ann@acme.io", "view", "secrets")

    assert time.monotonic() - began < 3
    assert caught.value.metadata["code"] == "UNAVAILABLE"
    assert unused_address in caught.value.message


def test_silent_server_is_reported_within_the_timeout(listener: socket.socket) -> None:
    """A call to a listener that never answers ends at its timeout."""
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    with Client(address, "token", timeout=0.5) as client, pytest.raises(CallFailed) as caught:
        client.check("ann@acme.io", "view", "secrets")

    assert 0.3 < time.monotonic() - began < 2
    assert caught.value.metadata["code"] in ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def test_restarted_server_is_found_again(client: Client, sqlite_site: Site) -> None:
    """A client outlives its server: the next call after a restart goes through."""
    before = client.check("ann@acme.io", "view", "secrets")
    sqlite_site.server.stop(0)
    restarted = build_server(sqlite_site.settings.model_copy(update={"listen": sqlite_site.address}))
    restarted.start()
    try:
        after = client.check("ann@acme.io", "view", "secrets")
    finally:
        restarted.stop(0)

    assert before
    assert after


def test_call_waits_for_a_server_that_is_about_to_start(client: Client, sqlite_site: Site) -> None:
    """Where the next server has the port already, a call is answered as soon as that one starts."""
    sqlite_site.server.stop(0)
    successor = build_server(sqlite_site.settings.model_copy(update={"listen": sqlite_site.address}))
    starting = threading.Timer(0.2, successor.start)
    starting.start()
    try:
        result = client.check("ann@acme.io", "view", "secrets")
    finally:
        starting.join()
        successor.stop(0)

    assert result


def test_client_recovers_after_a_server_outage(client: Client, sqlite_site: Site) -> None:
    """After calls that failed because no server was there, later ones find the one that came back."""
    sqlite_site.server.stop(0)
    with pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    restarted = build_server(sqlite_site.settings.model_copy(update={"listen": sqlite_site.address}))
    restarted.start()
    try:
        found = answers_within(10, client)
    finally:
        restarted.stop(0)

    assert found


# Where it connects, and as whom


def test_address_and_token_come_from_the_environment(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, token and organization come from the environment where no argument gives them."""
    monkeypatch.setenv("ROLECALL_ADDRESS", sqlite_site.address)
    monkeypatch.setenv("ROLECALL_TOKEN", sqlite_site.tokens["OWNER"])
    monkeypatch.setenv("ROLECALL_ORGANIZATION", "acme")

    with Client() as client:
        result = client.check("ann@acme.io", "view", "secrets")

    assert result


def test_organization_of_the_environment_is_used(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROLECALL_ORGANIZATION is sent: one that isn't the token's is refused."""
    monkeypatch.setenv("ROLECALL_ORGANIZATION", "beta")

    with (
        Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client,
        pytest.raises(OrganizationNotFound),
    ):
        client.policy()


def test_arguments_beat_the_environment(
    sqlite_site: Site, unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments take precedence over the environment."""
    monkeypatch.setenv("ROLECALL_ADDRESS", unused_address)
    monkeypatch.setenv("ROLECALL_TOKEN", "rcp_unknown")
    monkeypatch.setenv("ROLECALL_ORGANIZATION", "beta")

    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "acme") as client:
        result = client.check("ann@acme.io", "view", "secrets")

    assert result


def test_client_without_a_token_says_how_to_set_it() -> None:
    """A client without a credential raises an error that says how to set it."""
    with pytest.raises(ConfigError, match="set ROLECALL_TOKEN"):
        Client("127.0.0.1:50051")


@pytest.mark.parametrize("address", ["local/host", "::1:50051", ":50051", "127.0.0.1:port"])
def test_malformed_address_is_refused(address: str) -> None:
    """A mistyped address is refused before anything is sent."""
    with pytest.raises(ConfigError, match="as in") as caught:
        Client(address, "token")

    assert f"`{address}`" in caught.value.message


@pytest.mark.parametrize("token", ["rcp_abc\n", "rcp_abc\r\nx-admin: 1", "rcp abc", "\u201crcp_abc\u201d", "rcp\0abc"])
def test_token_with_illegal_characters_is_never_sent(token: str, listener: socket.socket) -> None:
    """A token with a line break, a space or a typographic quote is refused before the call, and not repeated."""
    address = f"127.0.0.1:{listener.getsockname()[1]}"

    with pytest.raises(ConfigError) as caught:
        Client(address, token)

    listener.settimeout(0.05)
    assert "malformed" in caught.value.message
    assert "abc" not in caught.value.message
    with pytest.raises(TimeoutError):
        listener.accept()


# 0.0.0.0 reaches this machine, and is no loopback address.


def test_token_never_leaves_the_machine_in_plain_text_by_default(listener: socket.socket) -> None:
    """Beyond loopback the first thing that is sent is a TLS handshake."""
    listener.settimeout(5)
    first_bytes = []

    def accept() -> None:
        connection, _ = listener.accept()
        with closing(connection):
            connection.settimeout(5)
            first_bytes.append(connection.recv(3))

    accepting = threading.Thread(target=accept)
    accepting.start()
    with Client(f"0.0.0.0:{listener.getsockname()[1]}", "token", timeout=2) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    accepting.join()

    assert first_bytes
    assert first_bytes[0][:2] == b"\x16\x03"


def test_plaintext_server_beyond_loopback_needs_consent(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS on the other side the call fails, unless the argument or the variable accepts the risk."""
    site = make_site(sqlite_url, listen="0.0.0.0:0", plaintext_exposes_tokens=True)
    address = f"0.0.0.0:{port_of(site.address)}"
    token = site.tokens["OWNER"]

    with Client(address, token, timeout=2) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    with Client(address, token, plaintext=True) as client:
        by_argument = client.check("ann@acme.io", "view", "secrets")
    monkeypatch.setenv("ROLECALL_PLAINTEXT_EXPOSES_TOKENS", "true")
    with Client(address, token) as client:
        by_variable = client.check("ann@acme.io", "view", "secrets")
    with Client(address, token, timeout=2, plaintext=False) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")

    assert by_argument
    assert by_variable


def test_ca_file_that_is_missing_is_named() -> None:
    """A missing CA file is an error that names it, rather than ignored."""
    with pytest.raises(ConfigError, match=r"The CA file /nowhere/ca\.pem \(ROLECALL_CA_FILE\) can't be read"):
        Client("127.0.0.1:50051", "token", ca_file="/nowhere/ca.pem")


def test_plain_text_never_goes_through_a_proxy(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment would see the token: loopback is spoken to directly."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], timeout=5) as client:
            assert client.check("ann@acme.io", "view", "secrets")
        proxy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.accept()

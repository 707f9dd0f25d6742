"""Rules with conditions over a running server: what they allow, what they are evaluated with, and who is told."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rolecall import Client
from rolecall.domain import CheckResult, Effect, Permission, PlanKind, Reason
from rolecall.errors import InvalidField, PermissionMissing, RolecallError
from rolecall.policy import build
from rolecall.server import build_server
from rolecall.v1 import authorization_pb2 as pb
from support.commands import Workspace, error_of
from support.environment import ROOT
from support.policy_folders import CASES, write_folder
from support.sites import MakeSite, Site
from support.waiting import wait_until

# The roles of the demo organization, which the server's tests have members of.
POLICY = """\
p, OWNER, owners, update, allow
p, OWNER, members, *, allow
p, OWNER, policy, *, allow
g, OWNER, ADMIN
g, ADMIN, CONTRIBUTOR
g, CONTRIBUTOR, VIEWER
g, VIEWER, VIEWERNOSECRETS
p, ADMIN, authorization, *, allow
p, ADMIN, policy, view, allow
p, ADMIN, account, manage, allow, from-office
p, ADMIN, personal-tokens, create, allow, by-a-member
p, ADMIN, members, view, allow
p, ADMIN, audit-logs, view, deny, from-office
p, VIEWER, audit-logs, view, allow
p, VIEWER, secrets, view, allow, from-office
p, VIEWER, secrets, view, allow, with-mfa
p, VIEWER, secrets/root, view, deny, outside
p, VIEWER, documents, view, allow
p, VIEWER, documents, update, allow, own
p, VIEWER, documents/archive, view, deny, outside
p, VIEWER, reports, view, allow, after-the-epoch
p, VIEWER, reports, update, allow, before-the-epoch
p, VIEWER, facts, view, allow, facts
p, VIEWER, loops, view, allow, all-numbers
p, VIEWERNOSECRETS, projects, view, allow
"""
CONDITIONS = """\
from-office:
  expression: in_network(context.ip, "192.0.2.0/24")
outside:
  expression: '!in_network(context.ip, "192.0.2.0/24")'
with-mfa:
  expression: subject.properties.mfa == true && action.properties.purpose != "backup"
own:
  expression: resource.properties.owner == subject.id
after-the-epoch:
  expression: time > timestamp("1970-01-02T00:00:00Z")
before-the-epoch:
  expression: time < timestamp("1970-01-02T00:00:00Z")
by-a-member:
  expression: subject.kind == "user" && subject.email.endsWith("@acme.io") && "ADMIN" in subject.roles
facts:
  expression: >-
    context.expected == subject.kind + " " + (subject.kind == "user" ? subject.email : "") + " " + subject.roles[0]
    + " " + resource.type + "|" + resource.id + "|" + resource.path + " " + action.name + " " + scope
all-numbers:
  expression: context.numbers.all(number, number > 0)
"""
OFFICE = {"ip": "192.0.2.7"}
ELSEWHERE = {"ip": "203.0.113.7"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy folder with conditions."""
    return write_folder(tmp_path / "conditional", POLICY, CASES.replace("TOP", "OWNER"), conditions=CONDITIONS)


@pytest.fixture
def site(make_site: MakeSite, sqlite_url: str, folder: Path) -> Site:
    """A server with that policy."""
    return make_site(sqlite_url, folder=folder)


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    """A client of somebody who may ask about everybody."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        yield client


def test_an_allow_rule_counts_only_while_its_condition_holds(client: Client) -> None:
    """One question is allowed from the office, and denied from elsewhere and without an address."""
    question = ("viewer@acme.io", "view", "secrets/billing")

    assert client.check(*question, context=OFFICE)
    assert client.check(*question, context=ELSEWHERE).reason is Reason.CONDITION_NOT_MET
    assert client.check(*question).reason is Reason.CONDITION_NOT_MET
    assert client.check(*question, context={"ip": 7}).reason is Reason.CONDITION_NOT_MET
    assert client.check(*question, context={"ip": None}).reason is Reason.CONDITION_NOT_MET


def test_a_deny_rule_counts_unless_its_condition_is_known_not_to_hold(client: Client) -> None:
    """A deny rule counts from elsewhere and without an address, and not from the office."""
    question = ("viewer@acme.io", "view", "documents/archive/1")

    assert client.check(*question, context=OFFICE)
    assert client.check(*question, context=ELSEWHERE).reason is Reason.FORBIDDEN
    assert client.check(*question).reason is Reason.FORBIDDEN
    assert client.check("viewer@acme.io", "view", "documents/1")


def test_any_condition_of_several_allow_rules_is_enough(client: Client) -> None:
    """Of two rules on the same permission, the one whose condition holds allows."""
    question = ("viewer@acme.io", "view", "secrets")
    mfa = {"mfa": True}

    assert client.check(*question, subject_properties=mfa, action_properties={"purpose": "read"})
    assert not client.check(*question, subject_properties=mfa, action_properties={"purpose": "backup"})
    assert not client.check(*question, subject_properties=mfa)
    assert client.check(*question, subject_properties=mfa, context=OFFICE)
    assert not client.check("viewer@acme.io", "view", "secrets/root", subject_properties=mfa, context=ELSEWHERE)


def test_properties_of_the_resource_are_compared_with_what_the_server_knows(client: Client, site: Site) -> None:
    """An owner updates a document: the owner comes with the question, the subject's id is the server's."""
    member = site.members["VIEWER"]
    owner = {"owner": member.user_id}

    assert client.check(member.email, "update", "documents/1", resource_properties=owner)
    assert client.check(f"user:{member.user_id}", "update", "documents/1", resource_properties=owner)
    assert not client.check("ann@acme.io", "update", "documents/1", resource_properties=owner)
    assert not client.check("role:VIEWER", "update", "documents/1", resource_properties=owner)


def test_nobody_overrides_what_the_server_knows(client: Client, site: Site) -> None:
    """Values in the context or the properties never stand for the subject's id, roles or the time."""
    lies = {"id": "x", "owner": "x", "subject": {"id": "x"}, "subject.id": "x", "time": "1970-01-01T00:00:00Z"}
    everything = {"context": lies, "resource_properties": lies, "subject_properties": lies, "action_properties": lies}

    assert not client.check("viewer@acme.io", "update", "documents/1", **everything)  # type: ignore[arg-type]
    assert not client.check("viewer@acme.io", "update", "reports", **everything)  # type: ignore[arg-type]
    assert client.check("viewer@acme.io", "view", "reports", **everything)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["{m.email}", "user:{m.user_id}", "role:VIEWER"])
def test_the_servers_own_values_are_right_for_each_form_of_subject(client: Client, site: Site, form: str) -> None:
    """Kind, address and roles of the subject, the parts of the resource, the action and the scope are as documented."""
    subject = form.format(m=site.members["VIEWER"])
    known = "role " if subject.startswith("role:") else "user viewer@acme.io"
    expected = f"{known} VIEWER facts|a/b|facts/a/b view projects/billing"

    result = client.check(subject, "view", "facts/a/b", scope="projects/billing", context={"expected": expected})

    assert result.reason is Reason.GRANTED


def test_a_token_is_evaluated_with_its_holders_values(client: Client, site: Site) -> None:
    """A presented token and one that is named have the address and the roles of the person who holds it."""
    token = site.tokens["VIEWER"]
    expected = {"expected": "user viewer@acme.io VIEWER facts||facts view "}

    assert client.check_token(token, "view", "facts", context=expected)
    assert client.check(f"token:{token.split('_')[1]}", "view", "facts", context=expected)


def test_a_batch_has_defaults_that_its_items_override(client: Client, site: Site) -> None:
    """An item without values of its own gets the batch's; one with a context has that alone, and the other defaults."""
    items = [
        _item("secrets"),
        _item("secrets", context=ELSEWHERE),
        _item("secrets", context={}),
        _item("secrets", context=ELSEWHERE, action_properties={"purpose": "read"}),
        _item("secrets", subject_properties={"mfa": False}, context=ELSEWHERE, action_properties={"purpose": "read"}),
    ]
    request = pb.BatchCheckRequest(checks=items)
    request.context.update(OFFICE)
    request.subject_properties.update({"mfa": True})

    answer = _batch_check(site, request)

    assert [result.decision == pb.DECISION_ALLOW for result in answer.results] == [True, False, False, True, False]
    assert all(client.batch_check([("viewer@acme.io", "view", "secrets")] * 2, context=OFFICE))


def _batch_check(site: Site, request: pb.BatchCheckRequest) -> pb.BatchCheckResponse:
    method = "/rolecall.v1.AuthorizationService/BatchCheck"
    answer, _ = site.call(method, request.SerializeToString(), f"Bearer {site.tokens['ADMIN']}")
    return pb.BatchCheckResponse.FromString(answer)


def _item(resource: str, **structs: dict[str, Any]) -> pb.BatchCheckItem:
    item = pb.BatchCheckItem(subject="viewer@acme.io", action="view", resource=resource)
    for name, values in structs.items():
        getattr(item, name).SetInParent()
        getattr(item, name).update(values)
    return item


@pytest.mark.parametrize("field", ["context", "resource_properties", "action_properties", "subject_properties"])
def test_values_beyond_the_bounds_are_refused_by_their_field(client: Client, field: str) -> None:
    """64 KiB and 32 levels are accepted, more is INVALID_ARGUMENT and names the field."""
    fitting: dict[str, Any] = {"x" * 10: "y" * 65_400}
    check: Callable[..., CheckResult] = partial(client.check, "viewer@acme.io", "view", "documents")
    deep: dict[str, Any] = {}
    for _ in range(31):
        deep = {"in": deep}

    for values in (fitting, deep):
        assert check(**{field: values})
    for values in ({"x": "y" * 65_536}, {"in": deep}, {"in": [[deep["in"]]]}):
        with pytest.raises(InvalidField) as refused:
            check(**{field: values})
        assert refused.value.field == field


def test_all_values_of_a_question_are_bounded_together(client: Client) -> None:
    """Two fields of 40 KiB each are refused."""
    half = {"x": "y" * 40_000}

    with pytest.raises(InvalidField) as refused:
        client.check("viewer@acme.io", "view", "documents", context=half, resource_properties=half)

    assert refused.value.field == "resource_properties"


def test_an_item_beyond_the_bounds_denies_itself_only(client: Client, site: Site) -> None:
    """A batch answers the other items, and says which field of which item is wrong."""
    items = [_item("documents"), _item("documents", context={"x": "y" * 65_536}), _item("documents")]

    request = pb.BatchCheckRequest(checks=items)
    answer = _batch_check(site, request)

    allowed = [result.decision == pb.DECISION_ALLOW for result in answer.results]
    assert allowed == [True, False, True]
    assert answer.results[1].error.field == "context"


def test_a_loop_over_many_values_is_not_run(client: Client) -> None:
    """A loop over a few numbers is evaluated; over thousands it fails closed, as it would hold up all other calls."""
    few, many = {"numbers": [1] * 100}, {"numbers": [1] * 4000}

    assert client.check("viewer@acme.io", "view", "loops", context=few)
    result = client.check("viewer@acme.io", "view", "loops", context=many, explain=True)

    assert result.reason is Reason.CONDITION_NOT_MET
    assert result.explanation is not None
    assert "more than the 4096" in result.explanation.summary


def test_an_explanation_names_the_condition_and_the_missing_values(client: Client) -> None:
    """A caller that may see rules sees which condition decided, whether it holds, and what it lacks."""
    question = ("viewer@acme.io", "view", "documents/archive")

    lacking = client.check("viewer@acme.io", "update", "documents", explain=True).explanation
    unmet = client.check("viewer@acme.io", "view", "secrets", context=ELSEWHERE, explain=True).explanation
    held = client.check("viewer@acme.io", "view", "secrets", context=OFFICE, explain=True).explanation
    denied = client.check(*question, context=ELSEWHERE, explain=True).explanation
    closed = client.check(*question, explain=True).explanation

    assert lacking is not None
    assert (lacking.condition, lacking.missing_values) == ("own", ("resource.properties.owner",))
    assert lacking.nearest_miss == "p, VIEWER, documents, update, allow, own"
    assert "can't be evaluated (the question lacks resource.properties.owner)" in lacking.summary
    assert unmet is not None
    assert (unmet.condition, unmet.missing_values) == ("from-office", ())
    assert "the condition `from-office` does not hold" in unmet.summary
    assert held is not None
    assert (held.condition, held.rule) == ("from-office", "p, VIEWER, secrets, view, allow, from-office")
    assert "as the condition `from-office` holds" in held.summary
    assert denied is not None
    assert (denied.condition, denied.missing_values) == ("outside", ())
    assert closed is not None
    assert (closed.condition, closed.missing_values) == ("outside", ("context.ip",))


def test_a_caller_that_may_not_see_rules_sees_no_condition(site: Site) -> None:
    """A caller without `authorization explain` gets the reason alone."""
    with Client(site.address, site.tokens["VIEWER"]) as client:
        result = client.check("viewer@acme.io", "update", "documents", explain=True)

    assert result.reason is Reason.CONDITION_NOT_MET
    assert result.explanation is not None
    assert (result.explanation.condition, result.explanation.missing_values) == ("", ())
    assert "own" not in result.explanation.summary


def test_rights_in_rolecall_are_evaluated_without_a_context(site: Site) -> None:
    """An allow rule that needs a context gives no right to manage, and a deny rule that needs one takes it away."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        with pytest.raises(PermissionMissing):
            client.organization.update("Acme")
        with pytest.raises(PermissionMissing):
            list(client.audit.list())
        created = client.tokens.create_personal("laptop").token.id
    with Client(site.address, site.tokens["VIEWER"]) as client:
        assert list(client.audit.list())

    assert created


def test_lists_name_the_conditions(client: Client) -> None:
    """ListPermissions has the condition of each rule; a plan leaves out what needs one, and says so."""
    permissions = set(client.permissions("viewer@acme.io"))
    secrets = client.plan_resources("viewer@acme.io", "view", "secrets")
    documents = client.plan_resources("viewer@acme.io", "view", "documents")
    projects = client.plan_resources("viewer@acme.io", "view", "projects")

    assert Permission("secrets", "view", Effect.ALLOW, "from-office") in permissions
    assert Permission("documents/archive", "view", Effect.DENY, "outside") in permissions
    assert Permission("documents", "view", Effect.ALLOW) in permissions
    assert (secrets.kind, secrets.conditions) == (PlanKind.NEVER, ("from-office", "outside", "with-mfa"))
    assert documents.include == ("documents/*",)
    assert documents.exclude == ("documents/archive",)
    assert documents.conditions == ("outside",)
    assert projects.conditions == ()


def test_lists_of_members_and_resources_name_conditions_or_fail_closed(client: Client) -> None:
    """A member who may only under conditions is listed apart, with these; a deny rule with a condition counts."""
    sometimes = {member.role: conditions for member, conditions in client.conditional_subjects("view", "secrets")}
    archived = {member.role: names for member, names in client.conditional_subjects("view", "documents/archive")}

    assert [member.role for member in client.subjects("view", "secrets")] == []
    assert sometimes["VIEWER"] == ("from-office", "with-mfa")
    assert "VIEWERNOSECRETS" not in sometimes
    assert "VIEWER" in [member.role for member in client.subjects("view", "documents")]
    assert list(client.conditional_subjects("view", "documents")) == []
    assert [member.role for member in client.subjects("view", "documents/archive")] == []
    assert archived["OWNER"] == ("outside",)
    assert list(client.resources("viewer@acme.io", "view", "documents")) == ["documents"]


def test_the_office_network_variant_is_served(make_site: MakeSite, sqlite_url: str) -> None:
    """The server serves the variant of the shipped policy, and keeps its conditions in the database."""
    folder = ROOT / "policies" / "variants" / "office-network"
    site = make_site(sqlite_url, folder=folder)
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert client.check("ann@acme.io", "view", "secrets/billing", context=OFFICE)
        assert not client.check("ann@acme.io", "view", "secrets/billing", context=ELSEWHERE)
        assert client.policy().policy.policy_version


def test_an_invalid_context_is_refused_by_the_client(client: Client) -> None:
    """A value that JSON doesn't have never leaves the client."""
    with pytest.raises(InvalidField) as refused:
        client.check("viewer@acme.io", "view", "secrets", context={"ip": object()})

    assert isinstance(refused.value, RolecallError)
    assert refused.value.field == "context"


def test_an_edit_of_the_conditions_alone_comes_into_force(site: Site, folder: Path, client: Client) -> None:
    """The server watches conditions.yaml: another expression is another version, a wrong one is refused."""
    question = ("viewer@acme.io", "view", "secrets")
    before = client.policy().policy.policy_version
    edited = CONDITIONS.replace("192.0.2.0/24", "203.0.113.0/24", 1)

    (folder / "conditions.yaml").write_text(edited)
    wait_until(lambda: bool(client.check(*question, context=ELSEWHERE)))
    after = client.policy().policy.policy_version
    (folder / "conditions.yaml").write_text(edited.replace("context.ip", "contxt.ip", 1))
    wait_until(lambda: client.policy().HasField("refusal"))
    (found,) = client.policy().refusal.findings

    assert before != after
    assert (found.file, found.line) == ("conditions.yaml", 2)
    assert client.check(*question, context=ELSEWHERE)
    assert not client.check(*question, context=OFFICE)


def test_the_database_keeps_the_conditions(site: Site, folder: Path) -> None:
    """A server whose folder is broken serves the policy in force, with its conditions, from the database."""
    site.stop()
    (folder / "policy.csv").write_text("p, broken\n")
    server = build_server(site.settings, limits=site.limits)
    server.start()
    try:
        with Client(server.address, site.tokens["ADMIN"]) as client:
            office = client.check("viewer@acme.io", "view", "secrets", context=OFFICE)
            elsewhere = client.check("viewer@acme.io", "view", "secrets", context=ELSEWHERE)
            refused = client.policy().HasField("refusal")
    finally:
        server.stop(0)

    assert (bool(office), bool(elsewhere), refused) == (True, False, True)


def test_conditions_are_validated_with_the_policy(site: Site) -> None:
    """ValidatePolicy takes the text of conditions.yaml, and without it finds them undefined."""
    files = build(site.policy_folder, 0.0).files
    wrong = files.conditions.replace("context.ip", "contxt.ip", 1)
    with Client(site.address, site.tokens["OWNER"]) as client:
        accepted = client.validate_policy(*files)
        undefined = client.validate_policy(files.model, files.policy, files.tests)
        refused = client.validate_policy(files.model, files.policy, files.tests, wrong)

    assert accepted.accepted
    assert accepted.policy_version == files.version
    assert not undefined.accepted
    assert "is not defined" in undefined.findings[0].message
    assert (refused.findings[0].file, refused.findings[0].line) == ("conditions.yaml", 2)


def test_the_command_asks_with_a_context(site: Site, tmp_path: Path) -> None:
    """`rolecall check --context` passes a JSON object on; the lists name the conditions."""
    variables = {"ROLECALL_ADDRESS": site.address, "ROLECALL_TOKEN": site.tokens["ADMIN"]}
    workspace = Workspace(tmp_path, variables)
    question = ("check", "viewer@acme.io", "view", "secrets")
    properties = ("--subject-properties", '{"mfa": true}', "--action-properties", '{"purpose": "read"}')
    owner = json.dumps({"owner": site.members["VIEWER"].user_id})

    office = workspace.run(*question, "--context", '{"ip": "192.0.2.7"}')
    elsewhere = workspace.run(*question, "--context", '{"ip": "203.0.113.7"}', "--explain")
    nothing = workspace.run(*question, "--explain")
    mfa = workspace.run(*question, *properties)
    owned = workspace.run("check", "viewer@acme.io", "update", "documents", "--resource-properties", owner)
    wrong = [workspace.run(*question, "--context", text) for text in ("{", "[]", "office")]
    listed = workspace.run("permissions", "viewer@acme.io")
    planned = workspace.run("resources", "viewer@acme.io", "view", "documents")
    members = workspace.run("subjects", "view", "secrets")

    assert (office.returncode, elsewhere.returncode, nothing.returncode) == (0, 1, 1)
    assert (mfa.returncode, owned.returncode) == (0, 0)
    assert "the condition `from-office` does not hold" in elsewhere.stdout
    assert "missing values: context.ip" in nothing.stdout
    assert all("--context is no JSON object" in error_of(each) for each in wrong)
    assert "secrets\tview\tallow\tfrom-office" in listed.stdout
    assert "More depends on conditions: outside" in planned.stderr
    assert "viewer@acme.io may only under the conditions from-office, with-mfa" in members.stderr

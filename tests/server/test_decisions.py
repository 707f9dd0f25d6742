"""The matrix, as members of each role get it over gRPC."""

import csv

import pytest

from rolecall import Client
from rolecall.domain import Explanation, Reason, now
from rolecall.storage import Transaction
from rolecall.storage import credentials as credential_rows
from support.environment import PERMISSIONS_FILE, ROOT
from support.sites import MakeSite, Site, add_member

with PERMISSIONS_FILE.open(encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))
ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")
CELLS = [(role, row["action"], row["resource"], row[role] == "1") for row in ROWS for role in ROLES]


def test_permission_matrix_is_complete() -> None:
    """The matrix that the tests below compare with is complete."""
    assert len(ROWS) == 47
    assert len(CELLS) == 235


def test_check_of_oneself_equals_the_permission_matrix(site: Site) -> None:
    """Each member asks about itself, by address, for each permission."""
    wrong = []
    for role in ROLES:
        with Client(site.address, site.tokens[role]) as client:
            for _, action, resource, expected in (cell for cell in CELLS if cell[0] == role):
                result = client.check(site.members[role].email, action, resource)
                if bool(result) is not expected or result.role != role:
                    wrong.append((role, action, resource, result))

    assert wrong == []


def test_batch_check_equals_the_permission_matrix(site: Site) -> None:
    """An owner asks about everybody, by every form of subject."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        for form in ("{m.email}", "user:{m.email}", "user:{m.user_id}", "role:{m.role}"):
            questions = [(form.format(m=site.members[role]), action, r) for role, action, r, _ in CELLS]
            results = client.batch_check(questions)

            assert [bool(result) for result in results] == [expected for *_, expected in CELLS]


def test_list_permissions_equals_the_column_of_the_role(site: Site) -> None:
    """ListPermissions of a member is the matrix's column of the role, no more and no less."""
    for role in ROLES:
        with Client(site.address, site.tokens[role]) as client:
            listed = {(p.action, p.resource) for p in client.permissions(site.members[role].email)}

        assert listed == {(action, resource) for r, action, resource, expected in CELLS if r == role and expected}


def test_list_subjects_equals_the_row_of_the_permission(site: Site) -> None:
    """ListSubjects of a permission is the matrix's row."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        for row in ROWS:
            listed = {member.role for member in client.subjects(row["action"], row["resource"])}

            assert listed == {role for role in ROLES if row[role] == "1"}, row


def test_a_rule_covers_what_is_beneath_its_resource(site: Site) -> None:
    """`secrets` covers `secrets/billing/x`, and not `secrets2`."""
    with Client(site.address, site.tokens["VIEWER"]) as client:
        assert client.check("viewer@acme.io", "view", "secrets/billing/db-password")
        assert client.check("viewer@acme.io", "view", "secrets2").reason is Reason.UNKNOWN_RESOURCE


def test_an_unknown_action_and_resource_have_reasons_of_their_own(site: Site) -> None:
    """An unknown action and an unknown resource are denied with reasons of their own, and the nearest name."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        action = client.check("ann@acme.io", "veiw", "secrets", explain=True)
        resource = client.check("ann@acme.io", "view", "sercets", explain=True)

    assert (action.reason, resource.reason) == (Reason.UNKNOWN_ACTION, Reason.UNKNOWN_RESOURCE)
    assert action.explanation is not None
    assert resource.explanation is not None
    assert action.explanation.nearest_miss == "view"
    assert resource.explanation.nearest_miss == "secrets"


@pytest.mark.parametrize("role", ["CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"])
def test_caller_is_told_who_may_instead_and_no_rule(site: Site, role: str) -> None:
    """A caller that may not see the policy gets the decision about itself, the roles that would pass, and no rule."""
    user = site.members[role]
    token = site.tokens[role]
    subjects = [user.email, f"user:{user.user_id}", f"token:{token.split('_')[1]}"]

    with Client(site.address, token) as client:
        denied = [client.check(subject, "manage", "account", explain=True) for subject in subjects]
        mistyped = client.check(user.email, "manage", "acount", explain=True)
        allowed = client.check(user.email, "view", "members", explain=True)

    row = next(row for row in ROWS if (row["resource"], row["action"]) == ("account", "manage"))
    passing = tuple(name for name in ROLES if row[name] == "1")
    for result in denied:
        assert not result
        assert result.explanation == Explanation(
            f"{role} may not `manage` on `account`. Roles that may: {', '.join(passing)}.",
            roles_that_pass=passing,
        )
    assert mistyped.reason is Reason.UNKNOWN_RESOURCE
    assert mistyped.explanation == Explanation(f"{role} may not `manage` on `acount`. No role may.")
    assert allowed
    assert allowed.explanation == Explanation(f"{role} may `view` on `members`.")


def test_restricted_token_of_an_owner_is_told_no_rule(site: Site) -> None:
    """A token whose restriction leaves out `authorization explain` gets no rules, though its holder may see them."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        restricted = client.tokens.create_personal("ci", restriction=[("secrets", "view")]).secret
    with Client(site.address, restricted) as client:
        result = client.check("ann@acme.io", "view", "secrets", explain=True)
        beyond = client.check_token(restricted, "delete", "projects")

    assert result.explanation == Explanation("OWNER may `view` on `secrets`.")
    assert beyond.reason is Reason.TOKEN_SCOPE


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("nobody@acme.io", "has this address: check its spelling"),
        ("user:ANN@elsewhere.io", "has this address: check its spelling"),
        ("user:Abcdefghij0123456789ZZ", "has this user id: check it"),
        ("user:nobody", "`nobody` is neither an address nor a user id"),
    ],
)
def test_non_member_may_nothing(site: Site, subject: str, said: str) -> None:
    """A subject that is not a member is denied with its own reason, and is told what it was taken for."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        result = client.check(subject, "view", "members", explain=True)

    assert result.reason is Reason.NOT_A_MEMBER
    assert result.explanation is not None
    assert said in result.explanation.summary


def test_an_address_is_found_in_any_case(site: Site) -> None:
    """Addresses are compared by their key."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        assert client.check("user:ANN@Acme.IO", "manage", "account").role == "OWNER"


def test_a_subject_named_like_a_role_has_no_role(site: Site) -> None:
    """A subject's address or id is never used as a role."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        assert client.check("user:OWNER", "manage", "account").reason is Reason.NOT_A_MEMBER


def test_tokens_are_subjects_by_id_and_as_presented(site: Site) -> None:
    """A token's holder is evaluated; a token that is dead, mistyped or foreign is unknown."""
    token = site.tokens["VIEWER"]
    identifier = token.split("_")[1]
    forged = token[:-7] + ("a" if token[-7] != "a" else "b") + token[-6:]
    with Client(site.address, site.tokens["ADMIN"]) as client:
        assert client.check_token(token, "view", "secrets").role == "VIEWER"
        assert client.check(f"token:{identifier}", "view", "secrets").role == "VIEWER"
        assert client.check_token(token, "delete", "projects").reason is Reason.NOT_GRANTED
        for wrong in (forged, "nonsense", token.lower()):
            assert client.check_token(wrong, "view", "members").reason is Reason.TOKEN_INVALID
        assert client.check(f"token:{'x' * 22}", "view", "members").reason is Reason.TOKEN_INVALID

        def revoke(tx: Transaction) -> bool:
            return credential_rows.revoke(tx, "acme", identifier, now())

        assert site.storage.mutate("acme", revoke)
        assert client.check_token(token, "view", "secrets").reason is Reason.TOKEN_INVALID
        assert client.check(f"token:{identifier}", "view", "secrets").reason is Reason.TOKEN_INVALID


def test_answers_have_the_revision(site: Site) -> None:
    """A mutation raises the revision that the next answer names."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        before = client.check("ann@acme.io", "view", "members").revision
        add_member(site.storage, "acme", "late@acme.io", "VIEWER")
        after = client.check("late@acme.io", "view", "members")

    assert after
    assert after.revision == before + 1


@pytest.mark.parametrize("variant", ["owner-managed", "viewer-editor-admin"])
def test_the_same_server_serves_the_variants(make_site: MakeSite, sqlite_url: str, variant: str) -> None:
    """Other policies, with other roles, are served by the same code: their own tests hold over gRPC."""
    folder = ROOT / "policies" / "variants" / variant
    site = make_site(sqlite_url, folder=folder)
    with (folder / "policy_test.csv").open(encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    top = next(iter(site.tokens))

    with Client(site.address, site.tokens[top]) as client:
        results = client.batch_check(
            (f"user:{site.members[c['role']].email}", c["action"], c["resource"]) for c in cases
        )

    assert [result.decision.value for result in results] == [case["expected"] for case in cases]

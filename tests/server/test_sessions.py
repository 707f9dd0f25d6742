"""Sessions over gRPC: who a caller is, and signing out."""

from pathlib import Path

from rolecall.domain import CredentialKind
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import CHECK_ONLY, found_other, id_of, put_credential, put_session
from support.rows import nothing_written
from support.server_calls import NOT_FOUND, OK, UNAUTHENTICATED, SiteCalls
from support.sites import MakeSite, Site
from support.token_requests import PERSONAL, SESSION


def test_who_am_i_lists_the_permissions_of_the_credential(site: Site) -> None:
    """A person's token, restricted or not, a session, an organization's token: holder, role, and permissions."""
    calls = SiteCalls(site)
    member = site.members["CONTRIBUTOR"]
    plain = calls.send("CONTRIBUTOR", session.WhoAmIRequest())
    narrow = calls.send(put_credential(site, member.user_id, only=CHECK_ONLY), session.WhoAmIRequest())
    starred = calls.send(put_credential(site, member.user_id, only=(("secrets", "*"),)), session.WhoAmIRequest())
    signed_in = calls.send(put_session(site, "CONTRIBUTOR"), session.WhoAmIRequest(organization="acme"))

    assert (plain.member.user_id, plain.member.email, plain.role) == (member.user_id, member.email, "CONTRIBUTOR")
    assert plain.organization.id == "acme"
    assert (plain.credential.id, plain.credential.kind) == (id_of(site.tokens["CONTRIBUTOR"]), PERSONAL)
    assert plain.permission_count == len(plain.permissions) == 20
    assert [(item.resource, item.action) for item in narrow.permissions] == list(CHECK_ONLY)
    assert [(item.resource, item.action) for item in starred.permissions] == [("secrets", "view")]
    assert (signed_in.credential.kind, signed_in.member.user_id) == (SESSION, member.user_id)
    assert signed_in.permissions == plain.permissions


def test_sign_out_revokes_only_the_presented_credential(site: Site) -> None:
    """SignOut revokes the presented credential, of any kind; the holder's other credentials stay valid."""
    calls = SiteCalls(site)
    member = site.members["VIEWER"].user_id
    kinds = [
        put_credential(site, member),
        put_credential(site, member, only=CHECK_ONLY),
        put_session(site, "VIEWER"),
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER"),
    ]
    for text in kinds:
        calls.send(text, session.WhoAmIRequest())
        before = calls.send("OWNER", organization.GetOrganizationRequest()).organization.revision
        answer = calls.send(text, session.SignOutRequest())

        assert answer.revision == before + 1
        assert calls.code(text, session.WhoAmIRequest()) is UNAUTHENTICATED
        assert calls.code(text, session.SignOutRequest()) is UNAUTHENTICATED
    assert calls.code("VIEWER", session.WhoAmIRequest()) is OK


def test_sign_out_of_another_organization_is_not_found(site: Site) -> None:
    """NOT_FOUND for any name but the caller's own; the credential stays valid."""
    calls = SiteCalls(site)
    found_other(site)
    with nothing_written(site):
        for name in ("other", "nowhere"):
            for request in (
                session.SignOutRequest(organization=name),
                session.WhoAmIRequest(organization=name),
                organization.GetOrganizationRequest(organization=name),
                organization.UpdateOrganizationRequest(
                    organization=organization.Organization(id=name, display_name="x")
                ),
                pb.ListTokensRequest(organization=name),
                pb.RotateTokenRequest(organization=name, id=id_of(site.tokens["OWNER"])),
                pb.DeleteTokenRequest(organization=name, id=id_of(site.tokens["OWNER"])),
            ):
                failure = calls.refused("OWNER", request)

                assert (failure.code, failure.reason) == (NOT_FOUND, "ORGANIZATION_NOT_FOUND"), request


def test_who_am_i_shows_the_first_thousand_permissions(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """WhoAmI shows the first thousand permissions and counts all; the rest is listed with `token:ID`."""
    more = "".join(f"p, VIEWER, things/{number}, view, allow\n" for number in range(1200))
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.write(more)
    calls = SiteCalls(make_site(sqlite_url))
    who = calls.send("VIEWER", session.WhoAmIRequest())

    assert len(who.permissions) == 1000
    assert who.permission_count == 1206

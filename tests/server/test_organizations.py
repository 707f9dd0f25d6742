"""The organization over gRPC: its name and its warnings."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from rolecall.v1 import organization_pb2 as organization
from support.rows import nothing_written
from support.server_calls import INVALID, SiteCalls
from support.sites import Site, add_member
from support.token_requests import NAMES, Personal


def test_single_owner_is_a_warning(site: Site) -> None:
    """A warning about the single owner is shown until a second person has such a role."""
    calls = SiteCalls(site)
    alone = calls.send("VIEWER", organization.GetOrganizationRequest()).organization
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    together = calls.send("VIEWER", organization.GetOrganizationRequest()).organization

    assert len(alone.warnings) == 1
    assert "single owner" in alone.warnings[0]
    assert list(together.warnings) == []
    assert together.revision == alone.revision + 1
    assert together.etag == alone.etag


def test_display_name_can_be_changed(site: Site) -> None:
    """Name, etag and revision change; the id never. Other mutations leave the etag alone."""
    calls = SiteCalls(site)
    before = calls.send("OWNER", organization.GetOrganizationRequest()).organization
    answer = calls.send(
        "OWNER",
        organization.UpdateOrganizationRequest(
            organization=organization.Organization(display_name="Acme, Inc.", etag=before.etag)
        ),
    )
    calls.send("OWNER", Personal(display_name="x"))
    after = calls.send("VIEWER", organization.GetOrganizationRequest()).organization

    assert (answer.organization.id, answer.organization.display_name) == ("acme", "Acme, Inc.")
    assert answer.revision == answer.organization.revision == before.revision + 1
    assert answer.organization.etag != before.etag
    assert (after.display_name, after.etag, after.revision) == (
        "Acme, Inc.",
        answer.organization.etag,
        answer.revision + 1,
    )
    stale = organization.UpdateOrganizationRequest(
        organization=organization.Organization(display_name="Other", etag=before.etag)
    )
    failure = calls.refused("OWNER", stale)
    assert (failure.reason, failure.field) == ("ETAG_MISMATCH", "organization.etag")


def test_bad_names_of_the_organization_are_refused(site: Site) -> None:
    """Bad names of the organization are refused, as those of tokens are."""
    calls = SiteCalls(site)
    with nothing_written(site):
        for name in NAMES:
            failure = calls.refused(
                "OWNER",
                organization.UpdateOrganizationRequest(organization=organization.Organization(display_name=name)),
            )

            assert (failure.code, failure.reason, failure.field) == (
                INVALID,
                "INVALID_FIELD",
                "organization.display_name",
            ), repr(name)
        failure = calls.refused(
            "OWNER",
            organization.UpdateOrganizationRequest(
                organization=organization.Organization(display_name="x"), request_id="1"
            ),
        )
        assert (failure.code, failure.field) == (INVALID, "request_id")


@pytest.mark.parametrize("paths", [None, [], ["display_name"], ["*"], ["display_name", "display_name"]])
def test_mask_of_mutable_fields_is_accepted(sqlite_site: Site, paths: list[str] | None) -> None:
    """Without a mask, all fields that are set are changed; output-only fields of the message are ignored."""
    calls = SiteCalls(sqlite_site)
    read = calls.send("OWNER", organization.GetOrganizationRequest()).organization
    read.display_name = "Acme, Inc."
    read.warnings.append("ignored")
    mask = None if paths is None else FieldMask(paths=paths)

    answer = calls.send("OWNER", organization.UpdateOrganizationRequest(organization=read, update_mask=mask))

    assert answer.organization.display_name == "Acme, Inc."
    assert answer.organization.revision == read.revision + 1
    assert "ignored" not in answer.organization.warnings


@pytest.mark.parametrize("path", ["id", "etag", "create_time", "warnings", "name", "organization.display_name", ""])
def test_mask_of_other_fields_is_refused(sqlite_site: Site, path: str) -> None:
    """An unknown or immutable path is INVALID_ARGUMENT for `update_mask`, also beside a mutable one."""
    calls = SiteCalls(sqlite_site)
    request = organization.UpdateOrganizationRequest(
        organization=organization.Organization(display_name="x"),
        update_mask=FieldMask(paths=["display_name", path]),
    )

    with nothing_written(sqlite_site):
        failure = calls.refused("OWNER", request)

    assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "update_mask")


def test_update_names_its_organization_by_id(sqlite_site: Site) -> None:
    """An empty id is the credential's own organization; any other one is not found."""
    calls = SiteCalls(sqlite_site)

    def update(name: str) -> organization.UpdateOrganizationRequest:
        changed = organization.Organization(id=name, display_name="Acme, Inc.")
        return organization.UpdateOrganizationRequest(organization=changed)

    assert calls.send("OWNER", update("acme")).organization.id == "acme"
    assert calls.send("OWNER", update("")).organization.id == "acme"
    assert calls.refused("OWNER", update("other")).reason == "ORGANIZATION_NOT_FOUND"


def test_repeated_update_is_one_however_its_organization_is_named(sqlite_site: Site) -> None:
    """One `request_id` with the id and without it is one change; with another name it is refused."""
    calls = SiteCalls(sqlite_site)
    key = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"

    def update(display_name: str, name: str = "") -> organization.UpdateOrganizationRequest:
        return organization.UpdateOrganizationRequest(
            organization=organization.Organization(id=name, display_name=display_name), request_id=key
        )

    first = calls.send("OWNER", update("Acme, Inc.", "acme"))

    assert calls.send("OWNER", update("Acme, Inc.")) == first
    assert calls.refused("OWNER", update("Other")).reason == "REQUEST_ID_REUSED"

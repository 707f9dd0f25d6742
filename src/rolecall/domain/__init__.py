"""Immutable values that every layer shares. Imports nothing of Rolecall. Times are UTC microseconds since 1970."""

from rolecall.domain.credentials import (
    Address,
    Caller,
    CredentialKind,
    LinkKind,
    MailKind,
    Networks,
    Refusal,
    Token,
    TokenState,
    Validity,
)
from rolecall.domain.decisions import (
    CheckResult,
    Explanation,
    ItemError,
    PlanKind,
    Question,
    Reason,
    ResourcePlan,
    Subject,
    SubjectKind,
)
from rolecall.domain.lists import AuditEntry, AuditFilter, Page
from rolecall.domain.people import Delivery, Invitation, InvitationState, Invitee, Member, MemberOrder, Organization
from rolecall.domain.permissions import Effect, Permission, Restriction, Role
from rolecall.domain.times import now, rfc3339

__all__ = [
    "Address",
    "AuditEntry",
    "AuditFilter",
    "Caller",
    "CheckResult",
    "CredentialKind",
    "Delivery",
    "Effect",
    "Explanation",
    "Invitation",
    "InvitationState",
    "Invitee",
    "ItemError",
    "LinkKind",
    "MailKind",
    "Member",
    "MemberOrder",
    "Networks",
    "Organization",
    "Page",
    "Permission",
    "PlanKind",
    "Question",
    "Reason",
    "Refusal",
    "ResourcePlan",
    "Restriction",
    "Role",
    "Subject",
    "SubjectKind",
    "Token",
    "TokenState",
    "Validity",
    "now",
    "rfc3339",
]

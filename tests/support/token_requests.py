"""Requests about tokens, and their enums, by short names."""

from rolecall.v1 import shared_pb2 as shared
from rolecall.v1 import token_pb2 as pb
from support.server_calls import SiteCalls

UUID = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"

PERSONAL, ORGANIZATION = shared.CREDENTIAL_KIND_PERSONAL_TOKEN, shared.CREDENTIAL_KIND_ORGANIZATION_TOKEN
SESSION = shared.CREDENTIAL_KIND_SESSION
ACTIVE, EXPIRED, DELETED = pb.TOKEN_STATE_ACTIVE, pb.TOKEN_STATE_EXPIRED, pb.TOKEN_STATE_DELETED

Personal = pb.CreatePersonalTokenRequest
Organizational = pb.CreateOrganizationTokenRequest


def own_token(calls: SiteCalls, holder: str, token_id: str) -> pb.Token | None:
    """The token as its holder finds it in the list."""
    listed = calls.send(holder, pb.ListTokensRequest()).tokens
    return next((token for token in listed if token.id == token_id), None)


# Names that are refused, of tokens and organizations.
NAMES = ["", " ", "\t", "x" * 65, "a\x07b", "a\nb", "a\x00b", "a\u200bb", "a\u202eb", "\u00a0", " x", "x "]
# Python takes these for printable, and nothing is drawn for them.
NAMES += [
    "\u034f",
    "\u034f" * 5,
    "a\u034fb",
    "\ufe0f",
    "x\ufe0f",
    "\U000e0100",
    "\u3164",
    "\uffa0",
    "\u115f",
    "\u17b4",
    "\u2800",
]
# Combining marks without a character to combine with.
NAMES += ["\u0301", "\u0301\u0302", "\u20dd", "\u0301 \u0301"]

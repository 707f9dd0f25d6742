"""TokenService."""

from typing import TypeVar

from rolecall.domain import CredentialKind, TokenState
from rolecall.errors import InvalidField
from rolecall.formats import display_names
from rolecall.formats.networks import parse_networks
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.token_rules import TokenSpec
from rolecall.services.tokens import IssuedToken, Tokens
from rolecall.v1 import shared_pb2
from rolecall.v1 import token_pb2 as pb

__all__ = ["TokenService"]

_KINDS: dict[int, CredentialKind] = {
    number: kind for kind, number in responses.KINDS.items() if kind is not CredentialKind.SESSION
}
_STATES: dict[int, TokenState] = {pb.TokenState.Value(f"TOKEN_STATE_{state.name}"): state for state in TokenState}

Create = pb.CreatePersonalTokenRequest | pb.CreateOrganizationTokenRequest
Answer = TypeVar("Answer", pb.CreatePersonalTokenResponse, pb.CreateOrganizationTokenResponse, pb.RotateTokenResponse)


class TokenService:
    """Creates, lists, rotates and deletes tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def CreatePersonalToken(self, request: pb.CreatePersonalTokenRequest, call: Call) -> pb.CreatePersonalTokenResponse:
        """Create a token for the caller."""
        issued = self._tokens.create_personal(call.change_request(request), _spec(request))
        return _issued(pb.CreatePersonalTokenResponse, issued)

    def CreateOrganizationToken(
        self, request: pb.CreateOrganizationTokenRequest, call: Call
    ) -> pb.CreateOrganizationTokenResponse:
        """Create a token for a program."""
        spec, role = _spec(request), requests.role(request.role)
        return _issued(
            pb.CreateOrganizationTokenResponse,
            self._tokens.create_organization(call.change_request(request), spec, role),
        )

    def ListTokens(self, request: pb.ListTokensRequest, call: Call) -> pb.ListTokensResponse:
        """List the tokens that the caller may see."""
        kind, state, user_id = _kind(request.kind), _state(request.state), requests.user_id(request.user_id)
        span = requests.duration(request.expires_within, "expires_within")
        caller = call.caller_in(request.organization)
        page = self._tokens.list(
            caller,
            kind,
            user_id,
            state,
            requests.page(request),
            show_deleted=request.show_deleted,
            expires_within=span if request.HasField("expires_within") else None,
        )
        return pb.ListTokensResponse(
            tokens=[responses.token(token) for token in page.tokens], next_page_token=page.next_page_token
        )

    def RotateToken(self, request: pb.RotateTokenRequest, call: Call) -> pb.RotateTokenResponse:
        """Give a token a new secret."""
        token_id, overlap = requests.credential_id(request.id), requests.duration(request.overlap, "overlap")
        issued = self._tokens.rotate(call.change_request(request), token_id, overlap, request.etag)
        return _issued(pb.RotateTokenResponse, issued)

    def DeleteToken(self, request: pb.DeleteTokenRequest, call: Call) -> pb.DeleteTokenResponse:
        """Delete a token; it no longer works."""
        token_id = requests.credential_id(request.id)
        deleted = self._tokens.delete(call.change_request(request), token_id, request.etag)
        return pb.DeleteTokenResponse(token=responses.token(deleted.token), revision=deleted.revision)


def _spec(request: Create) -> TokenSpec:
    """Return the specification of a new token. Raises `InvalidField`."""
    expiry = request.WhichOneof("expiry")
    return TokenSpec(
        display_names.parse(request.display_name, "display_name"),
        requests.timestamp(request.expire_time, "expire_time") if expiry == "expire_time" else None,
        requests.duration(request.ttl, "ttl") if expiry == "ttl" else None,
        requests.restriction(request.restriction) if request.HasField("restriction") else None,
        parse_networks(request.networks),
    )


def _kind(number: int) -> CredentialKind | None:
    if number != shared_pb2.CREDENTIAL_KIND_UNSPECIFIED and number not in _KINDS:
        raise InvalidField("kind is no token's: give a personal or an organization token's, or none.", field="kind")
    return _KINDS.get(number)


def _state(number: int) -> TokenState | None:
    if number != pb.TOKEN_STATE_UNSPECIFIED and number not in _STATES:
        raise InvalidField("state is unknown: give active, expired or deleted, or none for all.", field="state")
    return _STATES.get(number)


def _issued(response: type[Answer], issued: IssuedToken) -> Answer:
    return response(
        token=responses.token(issued.token),
        secret=issued.secret,
        revision=issued.revision,
        secret_lost=issued.secret_lost,
    )

"""Requests about invitations, and their enums, by short names."""

from rolecall.domain import CredentialKind
from rolecall.v1 import invitation_pb2 as pb

MINUTE = 60_000_000
WEEK = 7 * 24 * 60 * MINUTE

PROGRAM = CredentialKind.ORGANIZATION
PENDING, DELETED = pb.INVITATION_STATE_PENDING, pb.INVITATION_STATE_DELETED
Update, Change = pb.UpdateInvitationRequest, pb.Invitation
Resend, Delete, Get = pb.ResendInvitationRequest, pb.DeleteInvitationRequest, pb.GetInvitationRequest
Accept = pb.AcceptInvitationRequest

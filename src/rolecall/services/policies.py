"""Policies: which one this process serves, which one is in force, and whether another would be accepted."""

import threading
from dataclasses import dataclass

from rolecall.domain import Caller, now
from rolecall.errors import RateLimited, StorageUnavailable
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy import Build, Finding, PolicyFiles, Severity, build_in_subprocess
from rolecall.policy.reload import RELOAD_CASBIN_SECONDS, InForce, LivePolicy, find_conflicts
from rolecall.services.caller_permissions import require
from rolecall.storage import Storage, Transaction
from rolecall.storage import policies as rows
from rolecall.storage.policies import Activation, ProcessBehind

__all__ = ["Policies", "PolicyState", "ValidatedPolicy"]

# Maximum seconds of a build.
MAX_VALIDATION_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The policy that this process serves, and the activation in force if that is a later one (`ahead`).

    `problem` says why this process is behind; empty while it catches up. `process` names it, as HOST/PID. `behind` are
    all processes of the database that can't serve the policy in force.
    """

    served: InForce
    ahead: Activation | None
    problem: str
    process: str
    behind: tuple[ProcessBehind, ...]


@dataclass(frozen=True, slots=True)
class ValidatedPolicy:
    """Result of a validation: the build, and all findings, those first that keep the policy from coming into force."""

    build: Build
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        """Whether the policy could come into force now."""
        return not self.findings or self.findings[0].severity is not Severity.ERROR


class Policies:
    """Use cases of PolicyService."""

    def __init__(self, storage: Storage, live: LivePolicy, limits: Limits = DEFAULT_LIMITS) -> None:
        self._storage = storage
        self._live = live
        self._validations = threading.Semaphore(limits.validations)

    def get(self, caller: Caller) -> PolicyState:
        """Describe the policy. Raises `PermissionMissing`."""
        served = self._live.in_force
        require(served.policy, caller, "view", "policy")

        def work(tx: Transaction) -> tuple[Activation | None, list[ProcessBehind]]:
            return rows.in_force(tx), rows.behind(tx, now())

        try:
            in_force, behind = self._storage.read(work)
        except StorageUnavailable:
            # An answer without it helps more during an outage than none.
            in_force, behind = None, []
        ahead = in_force if in_force and in_force.version != served.policy.version else None
        return PolicyState(served, ahead, self._live.problem, self._live.process, tuple(behind))

    def validate(self, caller: Caller, files: PolicyFiles) -> ValidatedPolicy:
        """Run the checks of a reload on the files, in a child process, and those against members and tokens.

        Changes nothing. Raises `PermissionMissing`, `StorageUnavailable`, and `RateLimited` while others are validated.
        """
        require(self._live.in_force.policy, caller, "manage", "policy")
        if not self._validations.acquire(blocking=False):
            raise RateLimited("Another policy is being validated: try again in a few seconds.")
        try:
            built = build_in_subprocess(files, RELOAD_CASBIN_SECONDS, max_seconds=MAX_VALIDATION_SECONDS)
        finally:
            self._validations.release()
        policy = built.policy
        conflicts = self._storage.read(lambda tx: find_conflicts(tx, policy)[0]) if policy else ()
        findings = sorted((*conflicts, *built.findings), key=lambda finding: finding.severity is not Severity.ERROR)
        return ValidatedPolicy(built, tuple(findings))

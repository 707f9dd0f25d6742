"""The policy in force: watches its folder, lets in what passes every gate, and keeps the last good one otherwise."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from rolecall.domain import now
from rolecall.errors import StorageUnavailable, WriteConflict
from rolecall.policy import (
    MODEL_FILE,
    POLICY_FILE,
    TEST_FILE,
    Build,
    Finding,
    Policy,
    PolicyError,
    Severity,
    build_aside,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = ["InForce", "LivePolicy", "Refusal", "misfits"]

# Three `stat` calls each time, 10 µs. Looking beats being told: it also sees a replaced folder and a network mount.
LOOK_SECONDS = 0.05
# The folder must have kept still for so long: several files saved in a burst are one change.
SETTLE_SECONDS = 0.1
SETTLE_AT_MOST_SECONDS = 1.0
# How long Casbin may judge: at the start, and while an admin waits for an edit to take effect.
START_ORACLE_SECONDS = 2.0
RELOAD_ORACLE_SECONDS = 0.3
# When to try again what the database kept out: it didn't answer, or the members there didn't fit.
RETRY_SECONDS = 2.0

_FILES = (MODEL_FILE, POLICY_FILE, TEST_FILE)
_log = structlog.get_logger("rolecall.policy")

# What changes when a file does, be it just its mode; None for one that can't be looked at.
_Look = tuple[tuple[int, int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A state of the folder that was not let in, since `since`."""

    version: str
    since: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy that answers, since when it does, and why the folder's present state doesn't."""

    policy: Policy
    since: int
    warnings: tuple[Finding, ...] = ()
    refusal: Refusal | None = None


class LivePolicy:
    """Holds the policy in one reference, so that every call sees the whole of one version."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        """Load the folder's policy. Raises `PolicyError` where it may not go live, `StorageUnavailable`."""
        self._folder = folder
        self._storage = storage
        self._seen = self._look()
        self._ownerless: list[str] = []
        result = build_aside(folder, START_ORACLE_SECONDS)
        if result.policy is None:
            raise PolicyError(folder, result.errors)
        policy = result.policy
        if gate := storage.read(lambda tx: self._gate(tx, policy)):
            raise PolicyError(folder, gate)
        self._in_force = InForce(result.policy, now(), _warnings(result))
        self._candidate: Build | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="policy-watch", daemon=True)

    @property
    def in_force(self) -> InForce:
        """What is served now."""
        return self._in_force

    def start(self) -> None:
        """Watch the folder from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. A reload that is under way has a second to end; then its thread is left behind."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def wake(self) -> None:
        """Read the folder again soon, changed or not. May be called from a signal handler."""
        self._wake.set()

    def _watch(self) -> None:
        """Look at the folder again and again; try again, too, what the database or its members kept out."""
        retry_at = float("inf")
        while not self._stopped.is_set():
            woken = self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                if woken or self._look() != self._seen:
                    self._settle()
                    self._candidate = self._build()
                elif time.monotonic() < retry_at:
                    continue
                if self._candidate:
                    self._admit(self._candidate)
            except Exception:  # noqa: BLE001 - the watch outlives any defect: the last good policy stays
                _log.exception("policy reload failed", folder=str(self._folder))
            retry_at = time.monotonic() + RETRY_SECONDS if self._candidate else float("inf")

    def _settle(self) -> None:
        """Wait until the folder has kept still; not for ever, so that endless saving can't keep a policy out."""
        deadline = time.monotonic() + SETTLE_AT_MOST_SECONDS
        while True:
            self._seen = self._look()
            if self._stopped.wait(SETTLE_SECONDS) or self._look() == self._seen or time.monotonic() > deadline:
                return

    def _build(self) -> Build | None:
        """What the folder holds, if it may be served as far as the files go; else note why not."""
        result = build_aside(self._folder, RELOAD_ORACLE_SECONDS)
        if result.policy is None:
            self._refuse(result.version, result.errors)
            return None
        return result

    def _admit(self, result: Build) -> None:
        """Let the policy in, or note why not; it stays the candidate then."""
        assert result.policy is not None  # noqa: S101 - for the type checker: `_build` answers no other
        before = self._in_force
        since = before.since if result.version == before.policy.version else now()
        admitted = InForce(result.policy, since, _warnings(result))

        def swap(tx: Transaction) -> tuple[Finding, ...]:
            # While no change is under way: one that was judged by the policy before must not fall between the two.
            gate = self._gate(tx, admitted.policy)
            if not gate:
                self._in_force = admitted
            return gate

        try:
            gate = self._storage.alone(swap)
        except (StorageUnavailable, WriteConflict):
            gate = (_finding("The roles in use can't be looked up.", "Wait: it is tried again."),)
        if gate:
            self._refuse(result.version, gate)
            return
        self._candidate = None
        _log.info(
            "policy in force", policy_version=result.version, rules=len(result.policy.rules), compared=result.compared
        )

    def _refuse(self, version: str, findings: tuple[Finding, ...]) -> None:
        before = self._in_force
        if before.refusal and (before.refusal.version, before.refusal.findings) == (version, findings):
            return
        refusal = Refusal(version, now(), findings)
        self._in_force = InForce(before.policy, before.since, before.warnings, refusal)
        _log.error(
            "policy refused, the last good one stays in force",
            folder=str(self._folder),
            in_force=before.policy.version,
            findings=[str(finding) for finding in findings[:5]],
            finding_count=len(findings),
        )

    def _gate(self, tx: Transaction, policy: Policy) -> tuple[Finding, ...]:
        """What would become of the members and tokens there are."""
        findings, ownerless = misfits(tx, policy)
        # Which organizations there are is the operator's business, not that of everybody who may see the policy.
        if ownerless and ownerless != self._ownerless:
            _log.error("policy leaves organizations without an owner", organizations=ownerless)
        self._ownerless = ownerless
        return findings

    def _look(self) -> _Look:
        looks: list[tuple[int, int, int, int, int] | None] = []
        for name in _FILES:
            try:
                stat = (self._folder / name).stat()
            except OSError:
                looks.append(None)
            else:
                looks.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev))
        return tuple(looks)


def misfits(tx: Transaction, policy: Policy) -> tuple[tuple[Finding, ...], list[str]]:
    """Why the policy doesn't fit the members and tokens there are: roles that vanish, organizations without an owner.

    Those organizations, a few of them, are named apart.
    """
    ownerless = member_rows.organizations_without(tx, policy.owner_roles, limit=5)
    held_by_tokens = token_rows.roles_held(tx, now())
    findings = [
        _finding(
            f"Members or tokens hold the role `{role}`, which this policy lacks.",
            f"Keep `{role}` until nobody holds it.",
        )
        for role in sorted((member_rows.roles_held(tx) | held_by_tokens) - set(policy.roles))
    ]
    findings += [
        _finding(
            f"An organization's token holds the role `{role}`, which in this policy may `owners update`.",
            f"Delete the tokens with the role `{role}` first, or leave that permission with another role.",
        )
        for role in sorted(held_by_tokens & set(policy.owner_roles))
    ]
    if ownerless:
        findings.append(
            _finding(
                "An organization would have no member who may `owners update`; the server's log names it.",
                "Leave that permission with a role that somebody holds there.",
            )
        )
    return tuple(findings), ownerless


def _warnings(result: Build) -> tuple[Finding, ...]:
    return tuple(finding for finding in result.findings if finding.severity is Severity.WARNING)


def _finding(message: str, fix: str) -> Finding:
    """A finding about the policy as a whole."""
    return Finding(POLICY_FILE, 0, 0, message, fix)

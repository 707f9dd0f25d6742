"""From a folder to a policy that may go live: read, lint, index, test, compare with Casbin."""

from dataclasses import dataclass
from pathlib import Path

from rolecall.policy import files, golden, lint
from rolecall.policy.compiled import Policy
from rolecall.policy.source import Finding, Severity

__all__ = ["Build", "build"]


@dataclass(frozen=True, slots=True)
class Build:
    """What came of a folder: a policy only where no finding is an error."""

    policy: Policy | None
    findings: tuple[Finding, ...]
    version: str
    compared: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the policy from going live."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


def build(folder: Path, oracle_seconds: float | None = 2.0) -> Build:
    """Build the policy of `folder` here. `oracle_seconds` bounds the comparison with Casbin; None: to the end."""
    source = files.read(folder)
    if not source.errors:
        lint.check_roles(source)
    if source.errors:
        return Build(None, tuple(source.findings), source.version)
    policy = Policy(source.rules, source.inheritances, source.version)
    lint.check_grants(source, policy)
    golden.check_cases(source, policy)
    compared = 0
    if not source.errors:
        from rolecall.policy import oracle  # noqa: PLC0415 - Casbin takes 0.1 s to import, and a broken policy none of it

        compared = oracle.check_against_casbin(source, policy, oracle_seconds)
    return Build(None if source.errors else policy, tuple(source.findings), source.version, compared)

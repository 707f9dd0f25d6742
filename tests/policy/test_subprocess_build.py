"""A policy that a child process builds is the one that this process would have built."""

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rolecall.policy import OWNERS, Build, PolicyError, Severity, build, build_in_subprocess, load, subprocess_build
from support.policy_folders import CASES, HEADER, OWNER_ROW, SHIPPED, write_folder

VARIANTS = sorted((SHIPPED / "variants").iterdir())


def _many_rules() -> str:
    """Rows that fill several pieces of every part of the index: names, prefixes, rules."""
    rows = [f"g, role{i}, role{i + 1}\n" for i in range(8)]
    rows += [f"p, role{i % 9}, type{i % 50}/item{i}, act{i % 7}, allow\n" for i in range(1500)]
    rows += [f"p, role{i % 9}, type{i % 50}/pre{i}*, *, {'deny' if i % 5 == 0 else 'allow'}\n" for i in range(1500)]
    return OWNER_ROW + "".join(rows)


def _child_of_this_process(folder: Path) -> int | None:
    """The process id of the child that builds `folder`, once it runs."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
    return None


def _build_in_thread(folder: Path, seconds: float) -> tuple[threading.Thread, list[Build]]:
    results: list[Build] = []
    thread = threading.Thread(target=lambda: results.append(build_in_subprocess(folder, seconds)))
    thread.start()
    return thread, results


@pytest.mark.parametrize("folder", [SHIPPED, *VARIANTS], ids=lambda folder: folder.name)
def test_loaded_policy_is_the_one_built_here(folder: Path) -> None:
    """`load` hands over every attribute of the policy that `build` makes, so the same decisions and version."""
    here = build(folder, 0.0).policy
    assert here is not None

    loaded = load(folder, 0.1)

    assert vars(loaded) == vars(here)
    assert loaded.version == here.version
    assert len(loaded.version) == 16


def test_loaded_policy_decides_like_the_one_built_here() -> None:
    """Every role, action and resource type is answered alike, rule and chain included."""
    here = build(SHIPPED, 0.0).policy
    assert here is not None
    questions = [
        (role, action, f"{kind}{below}")
        for role in (*here.roles, "NOBODY")
        for action in (*sorted(here.actions), "polish")
        for kind in (*sorted(here.resource_types), "brass")
        for below in ("", "/x")
    ]

    loaded = load(str(SHIPPED), 0.0)

    answers = [[(d.reason, d.rule, d.role_chain) for d in (p.decide(*q) for q in questions)] for p in (loaded, here)]
    assert answers[0] == answers[1]
    assert len(questions) > 1000


def test_policy_of_several_pieces_arrives_complete(tmp_path: Path) -> None:
    """A policy of more rules than one piece holds is put together in order and in full."""
    folder = write_folder(tmp_path, _many_rules(), CASES)
    here = build(folder, 0.0)
    assert here.policy is not None

    aside = build_in_subprocess(folder, 0.1)

    assert aside.policy is not None
    assert len(aside.policy.rules) == 3001
    assert vars(aside.policy) == vars(here.policy)
    assert (aside.findings, aside.version) == (here.findings, here.version)
    assert (
        aside.policy.decide("role0", "act1", "type1/pre1-x").rule
        == here.policy.decide("role0", "act1", "type1/pre1-x").rule
    )


def test_pieces_are_short(tmp_path: Path) -> None:
    """Everything is handed over in pieces of at most 1,000 entries, so that taking one over is quick."""
    result = build(write_folder(tmp_path, _many_rules(), CASES), 0.0)
    stream = io.BytesIO()

    subprocess_build.send(result, stream)

    stream.seek(0)
    sent, has_policy = pickle.load(stream)
    pieces = list(iter(lambda: pickle.load(stream), None))
    assert (sent, has_policy) == (replace(result, policy=None), True)
    assert max(len(value) for _, value in pieces if isinstance(value, dict | list | tuple)) == 1000
    assert sum(len(value) for path, value in pieces if path == ("rules",)) == 3001
    assert {len(path) for path, _ in pieces if path[0] == "_tables"} == {2}
    assert stream.read() == b""


def test_findings_arrive_as_they_were_made(tmp_path: Path) -> None:
    """Errors and warnings of a refused folder come over unchanged, and no policy with them."""
    folder = write_folder(
        tmp_path, f"{OWNER_ROW}g, DEV, GUEST\np, GUEST, docs, read, allow\np, DEV, docs, read, Allow\n"
    )

    aside = build_in_subprocess(folder, 0.1)

    assert aside == build(folder, 0.1)
    assert aside.policy is None
    assert [(f.line, f.column, f.severity) for f in aside.errors] == [(4, 21, Severity.ERROR)]


def test_warning_comes_along_with_the_policy(tmp_path: Path) -> None:
    """A folder with warnings alone gives both the policy and the warnings."""
    folder = write_folder(
        tmp_path, f"{OWNER_ROW}g, DEV, GUEST\np, GUEST, docs, read, allow\np, DEV, docs, read, allow\n"
    )

    aside = build_in_subprocess(folder, 0.1)

    assert aside.policy is not None
    assert aside.errors == ()
    assert [finding.severity for finding in aside.findings] == [Severity.WARNING]


def test_child_counts_what_it_tested_and_compared() -> None:
    """The child reports how many expectations it tested, and how many answers it compared with Casbin's."""
    aside = build_in_subprocess(SHIPPED, 0.5)

    assert aside.tests == 235
    assert aside.comparisons > 20


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child through /proc")
def test_killed_child_is_a_finding(tmp_path: Path) -> None:
    """A child that dies in the middle of its work gives an error to read, not an exception."""
    folder = write_folder(tmp_path, _many_rules(), CASES)
    thread, results = _build_in_thread(folder, 60.0)
    deadline = time.monotonic() + 20
    while (pid := _child_of_this_process(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    thread.join(20)

    assert len(results) == 1
    assert results[0].policy is None
    assert [(f.file, f.line, f.column) for f in results[0].errors] == [("policy.csv", 0, 0)]
    assert "ended early or ran out of time" in results[0].errors[0].message
    assert "server's log" in results[0].errors[0].fix


def test_child_that_takes_too_long_is_a_finding(tmp_path: Path) -> None:
    """A child that isn't done in time is ended, and the folder refused."""
    folder = write_folder(tmp_path, _many_rules(), CASES)
    began = time.monotonic()

    built = subprocess_build.build_in_subprocess(folder, 60.0, max_seconds=0.5)

    assert built.policy is None
    assert "ran out of time" in built.errors[0].message
    assert time.monotonic() - began < 20


def test_child_that_cannot_start_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no child can be started, the folder is refused; only the log has the reason, which callers don't need."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))

    aside = build_in_subprocess(SHIPPED, 0.1)

    assert aside.policy is None
    assert "no-such-python" not in str(aside.errors[0])
    assert "no-such-python" in capfd.readouterr().out


def test_nothing_printed_in_the_child_mixes_with_its_answer() -> None:
    """The child's standard output holds its answer alone, and it ends well."""
    command = [sys.executable, "-m", "rolecall.policy", str(SHIPPED), "0.1", ""]

    done = subprocess.run(command, capture_output=True, timeout=60, check=True)

    assert done.stdout[:1] == b"\x80"
    assert done.stderr == b""


@pytest.mark.parametrize("rules", [_many_rules(), OWNER_ROW], ids=["many", "join_names"])
def test_child_whose_parent_has_ended_prints_nothing(tmp_path: Path, rules: str) -> None:
    """A child whose parent has ended, as after SIGTERM, leaves no traceback, whatever its answer's size."""
    command = [sys.executable, "-m", "rolecall.policy", str(write_folder(tmp_path, rules, CASES)), "0.1", ""]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        stderr = child.stderr.read()

    assert stderr == b""
    assert child.returncode == 1


def test_child_takes_no_module_from_the_folder_it_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is called like a module of a library is not run because a server is started beside it."""
    write_folder(tmp_path / "policies")
    for name in ("difflib", "casbin"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not the module')\n")
    monkeypatch.chdir(tmp_path)

    aside = build_in_subprocess(Path("policies"), 0.1)

    assert aside.errors == ()
    assert aside.policy is not None


def _missing(folder: Path) -> Path:
    return folder / "nowhere"


def _empty(folder: Path) -> Path:
    return folder


def _file(folder: Path) -> Path:
    path = folder / "policy"
    path.write_text("p, TOP, owners, update, allow\n")
    return path


def _binary(folder: Path) -> Path:
    noise = bytes(range(256)) * 40
    return write_folder(folder, noise, noise, noise)


def _directories(folder: Path) -> Path:
    for name in ("model.conf", "policy.csv", "policy_test.csv"):
        (folder / name).mkdir()
    return folder


def _fifos(folder: Path) -> Path:
    for name in ("model.conf", "policy.csv", "policy_test.csv"):
        os.mkfifo(folder / name)
    return folder


def _swapped(folder: Path) -> Path:
    return write_folder(folder, CASES, OWNER_ROW, OWNER_ROW)


def _circle(folder: Path) -> Path:
    return write_folder(folder, f"{OWNER_ROW}g, A, B\ng, B, A\n")


def _ownerless(folder: Path) -> Path:
    return write_folder(folder, "p, A, docs, read, allow\n", f"{HEADER}A,docs,read,allow,\n")


@pytest.mark.parametrize(
    "broken",
    [_missing, _empty, _file, _binary, _directories, _fifos, _swapped, _circle, _ownerless],
    ids=lambda f: f.__name__,
)
def test_broken_folder_raises_policy_error_with_its_findings(broken: Callable[[Path], Path], tmp_path: Path) -> None:
    """However a folder is broken, `load` raises `PolicyError` alone, which carries and prints every finding."""
    folder = broken(tmp_path)

    with pytest.raises(PolicyError) as caught:
        load(folder, 0.1)

    assert caught.value.findings == build(folder, 0.1).errors
    assert len(caught.value.findings) > 0
    first, *others = str(caught.value).splitlines()
    assert first == f"The policy in {folder} can't be served:"
    assert others == [str(finding) for finding in caught.value.findings]


def test_folder_name_with_nul_is_a_finding() -> None:
    """A folder name that no system takes is refused like any other that can't be read."""
    aside = build_in_subprocess(Path("policies\0"), 0.1)

    assert aside.policy is None
    assert len(aside.errors) > 0
    with pytest.raises(PolicyError) as caught:
        load("policies\0", 0.1)
    assert caught.value.findings == aside.errors


def test_later_change_of_the_files_leaves_a_loaded_policy_alone(tmp_path: Path) -> None:
    """A policy is a snapshot: editing its folder changes what is loaded next, not what is in force."""
    folder = write_folder(tmp_path, f"{OWNER_ROW}p, GUEST, docs, read, allow\n")
    before = load(folder, 0.1)
    write_folder(tmp_path, f"{OWNER_ROW}p, GUEST, docs, read, deny\n")

    after = load(folder, 0.1)

    assert bool(before.roles_that_may("read", "docs")) is True
    assert bool(after.roles_that_may("read", "docs")) is False
    assert before.version != after.version
    assert before.owner_roles == after.owner_roles == before.roles_that_may(OWNERS[1], OWNERS[0])

"""`rolecall members`, `invitations`, `accept` and `sign-in` as their users run them, with the mails that they get."""

import email
import json
import os
import pty
import re
import select
import subprocess
from email import policy as mail_policy
from pathlib import Path

import pytest

from rolecall import Client
from support.commands import PROGRAM, Workspace, cells, error_of, only_line
from support.sites import Site, add_member
from support.waiting import wait_until


def mailed_secret(site: Site, to: str, prefix: str = "rci") -> str:
    """The secret in the newest mail of that kind to this address, once it is there."""
    found: list[tuple[int, str]] = []

    def look() -> bool:
        for file in site.settings.mail_folder.glob("*.eml"):
            mail = email.message_from_bytes(file.read_bytes(), policy=mail_policy.default)
            body = mail.get_body(("plain",))
            assert body is not None
            if mail["To"] == to and (match := re.search(rf"{prefix}_\w+", body.get_content())):
                found.append((file.stat().st_mtime_ns, match[0]))
        return bool(found)

    wait_until(look)
    return max(found)[1]


def test_from_invitation_to_removal(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Two are invited with one line; one accepts by piping the secret, gets a session, another role, and is removed."""
    invited = server_workspace.run("invitations", "create", "bob@x.io, eve@x.io", "--role", "ADMIN")
    listed = server_workspace.run("invitations", "list")
    accepted = server_workspace.run("accept", "--name", "Bob", stdin=mailed_secret(sqlite_site, "bob@x.io") + "\n")
    session = only_line(accepted)
    changed = server_workspace.run("members", "set-role", "BOB@x.io", "VIEWER")
    as_bob = Workspace(server_workspace.folder, {**server_workspace.variables, "ROLECALL_TOKEN": session})
    who = as_bob.run("whoami")
    removed = server_workspace.run("members", "remove", "bob@x.io")

    assert invited.returncode == 0
    assert "2 invited" in invited.stderr
    assert sorted([*row[:5], row[6]] for row in cells(listed)[1:]) == [
        ["bob@x.io", "", "ADMIN", "", "pending", "ann@acme.io"],
        ["eve@x.io", "", "ADMIN", "", "pending", "ann@acme.io"],
    ]
    assert session.startswith("rcs_")
    assert session not in accepted.stderr
    assert "You are bob@x.io, ADMIN of acme." in accepted.stderr
    assert "bob@x.io is VIEWER now." in changed.stderr
    assert "VIEWER of acme" in who.stdout
    assert "bob@x.io is no longer a member." in removed.stderr
    assert "No valid credential" in error_of(as_bob.run("whoami"))


def test_members_are_listed(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Members are listed as a table with filters and an order, and as JSON."""
    add_member(sqlite_site.storage, "acme", "zed@x.io", "VIEWER")

    newest = cells(server_workspace.run("members", "list", "--order", "newest"))
    viewers = cells(server_workspace.run("members", "list", "--role", "VIEWER"))
    found = json.loads(only_line(server_workspace.run("members", "list", "--text", "X.io", "--json")))

    assert newest[0] == ["address", "name", "role", "user id", "external id", "since"]
    assert newest[1][0] == "zed@x.io"
    assert [row[0] for row in viewers[1:]] == ["viewer@acme.io", "zed@x.io"]
    assert [member["email"] for member in found] == ["zed@x.io"]


def test_members_are_moved(server_workspace: Workspace, sqlite_site: Site) -> None:
    """All members with a role get another; a dry run counts them; tokens with the old role are named."""
    add_member(sqlite_site.storage, "acme", "zed@x.io", "VIEWER")
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        client.tokens.create_organization("ci", "VIEWER")

    counted = server_workspace.run("members", "move", "VIEWER", "CONTRIBUTOR", "--dry-run")
    moved = server_workspace.run("members", "move", "VIEWER", "CONTRIBUTOR")
    again = json.loads(only_line(server_workspace.run("members", "move", "VIEWER", "CONTRIBUTOR", "--json")))
    unknown = error_of(server_workspace.run("members", "move", "GUEST", "CONTRIBUTOR"))

    assert "2 members would get the role CONTRIBUTOR." in counted.stderr
    assert "2 members got the role CONTRIBUTOR." in moved.stderr
    assert "1 organization tokens have the role VIEWER still" in moved.stderr
    assert again["member_count"] == 0
    assert "no role `GUEST`" in unknown


def test_every_bad_entry_of_a_file_is_named(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Bad entries of a file are named in its own words, with their line numbers; no one is invited."""
    (server_workspace.folder / "people.csv").write_text(
        "address,role\nkim@x.io,VIEWER\nann@acme.io,ADMIN\nnobody,VIEWER\nlee@x.io,NOPE\n"
    )

    refused = server_workspace.run("invitations", "create", "--file", "people.csv", "--yes")

    assert refused.returncode == 2
    assert refused.stdout == ""
    first, *rest = refused.stderr.splitlines()
    assert first == "error: 3 problems, nothing was changed:"
    assert rest[0].startswith("  ann@acme.io (people.csv:3): ann@acme.io is a member already")
    assert rest[1].startswith("  nobody (people.csv:4): The address is not valid")
    assert rest[2].startswith("  lee@x.io (people.csv:5): The policy has no role `NOPE`")
    assert cells(server_workspace.run("invitations", "list", "--show-deleted"))[1:] == []


def test_duplicate_entry_is_named_by_line(server_workspace: Workspace, sqlite_site: Site) -> None:
    """A repeated address is named with both lines of the file, or both places in a list; no one is invited."""
    (server_workspace.folder / "people.csv").write_text(
        "address,role\na1@x.io,VIEWER\n# more\nb@x.io,VIEWER\nA1@x.io,ADMIN\n"
    )

    of_file = error_of(server_workspace.run("invitations", "create", "--file", "people.csv", "--yes"))
    of_list = error_of(server_workspace.run("invitations", "create", "b@x.io,a1@x.io,a1@x.io", "--role", "VIEWER"))

    assert "A1@x.io (people.csv:5): A1@x.io is the same address as that of a1@x.io (people.csv:2): leave one" in of_file
    assert "a1@x.io (number 3): a1@x.io is the same address as that of a1@x.io (number 2): leave one out" in of_list
    assert "invitations[" not in of_file + of_list
    assert cells(server_workspace.run("invitations", "list", "--show-deleted"))[1:] == []


def test_empty_list_of_people_is_refused(server_workspace: Workspace) -> None:
    """Inviting nobody is an error: a script whose list is empty by mistake must fail."""
    assert "The list has no address" in error_of(
        server_workspace.run("invitations", "create", ",,", "--role", "VIEWER")
    )


def test_binary_file_is_refused(server_workspace: Workspace) -> None:
    """A file that isn't UTF-8 is refused without a traceback."""
    process = subprocess.run(
        [PROGRAM, "invitations", "create", b"\xff@x.io", "--role", "VIEWER"],
        env=server_workspace.environment,
        cwd=server_workspace.folder,
        capture_output=True,
        check=False,
    )

    assert process.returncode == 2
    assert b"not valid UTF-8" in process.stderr
    assert b"Traceback" not in process.stderr
    secret = subprocess.run(
        [PROGRAM, "accept"],
        input=b"rci_canary\xff\n",
        env=server_workspace.environment,
        cwd=server_workspace.folder,
        capture_output=True,
        check=False,
    )
    assert secret.returncode == 2
    assert b"canary" not in secret.stdout + secret.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a@x.io,VIEWER,A,idp:a,more\n", "people.csv:1: write an address, a comma and a role"),
        ("a@x.io;VIEWER\nb@x.io;ADMIN;B;idp:b;;more\n", "people.csv:2: write an address, a comma and a role"),
        ("address,role\na@x.io,VIEWER,A\n", "people.csv:2: write an address, a comma and a role"),
        ("a@x.io,,A\n", "people.csv:1: write an address, a comma and a role"),
        ("a@x.io\n", "people.csv:1: write an address, a comma and a role"),
        ("address,name\na@x.io,A\n", "people.csv:1: the header must name the columns `address` and `role`"),
        ("address,role,role\n", "people.csv:1: the header must name the columns `address` and `role`"),
        ("address,role,team\n", "people.csv:1: the header must name the columns `address` and `role`"),
        ("\n# nobody\n;;;\n", "people.csv lists nobody"),
        ("address;role;name\n", "people.csv lists nobody"),
        ('a@x.io,VIEWER,"A\nb@x.io,VIEWER\n', "The file people.csv can't be read: unexpected end of data"),
        ("\xff\xfea\0@\0x\0", "can't be read: it is in UTF-16 or another encoding"),
        ("a\0@\0x\0.\0", "can't be read: it is in UTF-16 or another encoding"),
        ("a@x.io,VIEWER,M\xfcller\n", "can't be read: it is in UTF-16 or another encoding. Save it as `CSV UTF-8`"),
    ],
)
def test_malformed_file_is_refused(server_workspace: Workspace, content: str, expected: str) -> None:
    """The error names the file, the line and what to write."""
    (server_workspace.folder / "people.csv").write_bytes(content.encode("latin-1"))

    assert expected in error_of(server_workspace.run("invitations", "create", "--file", "people.csv", "--yes"))


@pytest.mark.parametrize(
    "content",
    [
        'a@x.io,VIEWER,"Lee, Ann",idp:a\nb@x.io,ADMIN\n',
        "a@x.io;VIEWER;Lee, Ann;idp:a\nb@x.io;ADMIN\n",
        "a@x.io\tVIEWER\tLee, Ann\tidp:a\r\nb@x.io\tADMIN\r\n",
        "\ufeffaddress;role;name;external id\r\na@x.io;VIEWER;Lee, Ann;idp:a\r\nb@x.io;ADMIN;;\r\n",
        "External_ID;Name;Role;Email\nidp:a;Lee, Ann;VIEWER;a@x.io\n;;ADMIN;b@x.io\n",
        '"a@x.io","VIEWER","Lee, Ann","idp:a",,,\n,,,,,,\n"b@x.io","ADMIN",,,,,\n',
        '# people; of, acme\n\n  a@x.io ; VIEWER ; "Lee, Ann"; idp:a \n;;;\n# "more"\nb@x.io;ADMIN;;;',
    ],
)
def test_files_of_spreadsheets_are_read(server_workspace: Workspace, sqlite_site: Site, content: str) -> None:
    """Commas, semicolons and tabs separate; a header may name the columns; empty cells and lines are skipped."""
    (server_workspace.folder / "people.csv").write_text(content, encoding="utf-8", newline="")

    made = json.loads(
        only_line(server_workspace.run("invitations", "create", "--file", "people.csv", "--yes", "--json"))
    )

    fields = ("email", "role", "display_name", "external_id")
    assert [tuple(invited[field] for field in fields) for invited in made] == [
        ("a@x.io", "VIEWER", "Lee, Ann", "idp:a"),
        ("b@x.io", "ADMIN", "", ""),
    ]


def test_name_and_external_id_are_of_one_person(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The options go with one address, and with no file; bad values and duplicates are named by their person."""
    create = ("invitations", "create")
    (server_workspace.folder / "people.csv").write_text("a@x.io,VIEWER,A,idp:a\nb@x.io,VIEWER,\x07,idp:a\n")

    several = error_of(server_workspace.run(*create, "a@x.io,b@x.io", "--role", "VIEWER", "--name", "A"))
    with_file = error_of(server_workspace.run(*create, "--file", "people.csv", "--external-id", "idp:a"))
    of_file = server_workspace.run(*create, "--file", "people.csv", "--yes")
    one = server_workspace.run(*create, "k@x.io", "--role", "VIEWER", "--name", "Kim", "--external-id", "idp:k")
    listed = cells(server_workspace.run("invitations", "list", "--external-id", "idp:k"))

    assert "--name and --external-id are of one person" in several
    assert "--file has all that is needed" in with_file
    assert "b@x.io (people.csv:2): display_name holds a control character" in of_file.stderr
    assert "b@x.io (people.csv:2): `idp:a` is the external id of a@x.io (people.csv:1) too" in of_file.stderr
    assert one.returncode == 0
    assert [row[:4] for row in listed[1:]] == [["k@x.io", "Kim", "VIEWER", "idp:k"]]


def test_invited_person_gets_another_role(server_workspace: Workspace, sqlite_site: Site) -> None:
    """`set-role` ends the older secret; the new mail's makes a member with the new role."""
    server_workspace.run("invitations", "create", "kim@x.io", "--role", "VIEWER")
    older = mailed_secret(sqlite_site, "kim@x.io")

    changed = server_workspace.run("invitations", "set-role", "KIM@x.io", "CONTRIBUTOR")
    refused = error_of(server_workspace.run("accept", stdin=older))
    unknown = error_of(server_workspace.run("invitations", "set-role", "kim@x.io", "CHIEF"))
    same = server_workspace.run("invitations", "set-role", "kim@x.io", "CONTRIBUTOR")
    wait_until(lambda: mailed_secret(sqlite_site, "kim@x.io") != older)
    accepted = server_workspace.run("accept", stdin=mailed_secret(sqlite_site, "kim@x.io"))

    assert "kim@x.io is invited as CONTRIBUTOR now, by a new mail." in changed.stderr
    assert "kim@x.io is invited as CONTRIBUTOR already: nothing was changed or mailed." in same.stderr
    assert "The secret opens no invitation" in refused
    assert "no role `CHIEF`" in unknown
    assert "You are kim@x.io, CONTRIBUTOR of acme." in accepted.stderr


def test_external_id_names_a_member_in_every_command(server_workspace: Workspace, sqlite_site: Site) -> None:
    """An external id is set, listed, asked about, used in place of the address, and cleared."""
    changed = server_workspace.run("members", "set-external-id", "viewer@acme.io", "auth0|7")
    listed = cells(server_workspace.run("members", "list", "--external-id", "auth0|7"))
    checked = server_workspace.run("check", "user:auth0|7", "view", "members")
    subjects = json.loads(only_line(server_workspace.run("subjects", "view", "members", "--json")))
    taken = error_of(server_workspace.run("members", "set-external-id", "admin@acme.io", "auth0|7"))
    malformed = error_of(server_workspace.run("members", "set-external-id", "admin@acme.io", "a b"))
    promoted = server_workspace.run("members", "set-role", "auth0|7", "CONTRIBUTOR")
    cleared = server_workspace.run("members", "set-external-id", "auth0|7")
    gone = error_of(server_workspace.run("members", "set-role", "auth0|7", "VIEWER"))

    assert "viewer@acme.io has the external id auth0|7 now." in changed.stderr
    assert [row[0] for row in listed[1:]] == ["viewer@acme.io"]
    assert checked.returncode == 0
    assert {one["email"]: one["external_id"] for one in subjects}["viewer@acme.io"] == "auth0|7"
    assert "has the external id `auth0|7`" in taken
    assert "external_id is no external id" in malformed
    assert "viewer@acme.io is CONTRIBUTOR now." in promoted.stderr
    assert "viewer@acme.io has no external id now." in cleared.stderr
    assert "auth0|7 is not a member" in gone


def test_long_list_is_invited_in_parts(server_workspace: Workspace, sqlite_site: Site) -> None:
    """450 people are three calls; bad entries in any part are named, and keep all from being invited."""
    good = [f"person{number}@x.io,VIEWER" for number in range(450)]
    (server_workspace.folder / "bad.csv").write_text(
        "\n".join(["first,VIEWER", *good, "bad,VIEWER,,idp:8", "person7@x.io,ADMIN"]).replace(
            "person8@x.io,VIEWER", "person8@x.io,VIEWER,,idp:8"
        )
    )
    (server_workspace.folder / "good.csv").write_text("\n".join(good))

    refused = server_workspace.run("invitations", "create", "--file", "bad.csv", "--yes")
    made = server_workspace.run("invitations", "create", "--file", "good.csv", "--yes", "--json")

    assert "bad (bad.csv:452): The address is not valid" in refused.stderr
    assert "first (bad.csv:1): The address is not valid" in refused.stderr
    assert "person7@x.io (bad.csv:453) is the same address as person7@x.io (bad.csv:9)" in refused.stderr
    assert "bad (bad.csv:452) has the same external id as person8@x.io (bad.csv:10)" in refused.stderr
    assert len(json.loads(only_line(made))) == 450
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        assert sum(1 for _ in client.invitations.list(state="pending")) == 450


def test_roles_to_be_given_are_shown_and_confirmed(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Without --yes the command shows who gets which role; answering no invites no one."""
    (server_workspace.folder / "people.csv").write_text("kim@x.io,VIEWER\nlee@x.io,OWNER\n")

    refused = server_workspace.run("invitations", "create", "--file", "people.csv", stdin="n\n")
    nobody = server_workspace.run("invitations", "create", "--file", "people.csv", stdin="")
    none = cells(server_workspace.run("invitations", "list"))
    made = server_workspace.run("invitations", "create", "--file", "people.csv", stdin="y\n")

    for asked in (refused, nobody):
        assert asked.returncode == 2
        assert "Programs pass --yes." in asked.stderr
    assert none[1:] == []
    assert cells(made)[1:] == [["kim@x.io", "VIEWER", "", ""], ["lee@x.io", "OWNER", "", ""]]
    assert "2 invited" in made.stderr


def test_invitations_are_resent_and_deleted_by_address(server_workspace: Workspace, sqlite_site: Site) -> None:
    """After a resend the older secret is invalid; after a delete, a resend says that the invitation was deleted."""
    server_workspace.run("invitations", "create", "kim@x.io", "--role", "VIEWER")
    older = mailed_secret(sqlite_site, "kim@x.io")

    resent = server_workspace.run("invitations", "resend", "KIM@x.io")
    refused = error_of(server_workspace.run("accept", stdin=older))
    deleted = server_workspace.run("invitations", "delete", "kim@x.io")
    again = error_of(server_workspace.run("invitations", "resend", "kim@x.io"))

    assert "kim@x.io gets a new mail." in resent.stderr
    assert "The secret opens no invitation" in refused
    assert "is deleted" in deleted.stderr
    assert "was deleted: create another one for the address" in again


def test_sign_in_by_mail(server_workspace: Workspace, sqlite_site: Site) -> None:
    """`sign-in` with an address requests a mail, else it takes the secret. Unknown addresses get the same output."""
    asked = server_workspace.run("sign-in", "viewer@acme.io", "--organization", "acme")
    stranger = server_workspace.run("sign-in", "nobody@acme.io", "--organization", "acme")
    secret = mailed_secret(sqlite_site, "viewer@acme.io", "rcl")
    entered = server_workspace.run("sign-in", stdin=secret)
    again = error_of(server_workspace.run("sign-in", stdin=secret))

    assert asked.returncode == stranger.returncode == 0
    assert asked.stderr.replace("viewer@", "nobody@") == stranger.stderr
    assert only_line(entered).startswith("rcs_")
    assert "does not sign anybody in" in again
    assert "tokens issue" not in again


def test_leaving_is_confirmed(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Answering no to `leave` changes nothing; the last owner can't leave, and gets the reason with what to do."""
    as_admin = Workspace(
        server_workspace.folder, {**server_workspace.variables, "ROLECALL_TOKEN": sqlite_site.tokens["ADMIN"]}
    )

    stayed = as_admin.run("members", "leave", stdin="n\n")
    left = as_admin.run("members", "leave", "--json", stdin="y\n")
    last = error_of(server_workspace.run("members", "leave", "--yes"))

    assert stayed.returncode != 0
    assert json.loads(only_line(left))["revision"] > 1
    assert "give it to a second person first, with `rolecall members set-role` or an invitation" in last


def test_secret_is_not_shown_at_the_prompt(server_workspace: Workspace, sqlite_site: Site, tmp_path: Path) -> None:
    """In a terminal the secret is prompted for, and the pasted text doesn't appear."""
    server_workspace.run("invitations", "create", "kim@x.io", "--role", "VIEWER")
    secret = mailed_secret(sqlite_site, "kim@x.io")

    seen, session, code = in_terminal(server_workspace, tmp_path, "accept", secret)

    assert code == 0
    assert secret not in seen
    assert session.startswith("rcs_")


def test_wrongly_pasted_secret_is_asked_for_again(
    server_workspace: Workspace, sqlite_site: Site, tmp_path: Path
) -> None:
    """At a terminal, a wrong text is explained and prompted for again, up to three times in all."""
    server_workspace.run("sign-in", "viewer@acme.io", "--organization", "acme")
    secret = mailed_secret(sqlite_site, "viewer@acme.io", "rcl")

    seen, session, code = in_terminal(server_workspace, tmp_path, "sign-in", secret[:-1], "x", secret)
    refused, nothing, failed = in_terminal(server_workspace, tmp_path, "sign-in", "x", "x", "x", secret)

    assert code == 0
    assert seen.count("paste it again") == 2
    assert session.startswith("rcs_")
    assert (failed, nothing) == (2, "")
    assert "another mail with `rolecall sign-in ADDRESS`" in " ".join(refused.split())


def in_terminal(server_workspace: Workspace, folder: Path, command: str, *pasted: str) -> tuple[str, str, int]:
    """Run a command in a terminal, pasting at each prompt; return terminal text, standard output and exit code."""
    keyboard, terminal = pty.openpty()
    out = folder / "session"
    waiting = list(pasted)
    # The first terminal that a new session opens is the one that it is controlled from, as a person's is.
    line = 'exec "$0" "$3" <"$1" >"$2" 2>"$1"'
    process = subprocess.Popen(
        ["sh", "-c", line, PROGRAM, os.ttyname(terminal), out, command],
        env=server_workspace.environment,
        cwd=server_workspace.folder,
        start_new_session=True,
    )
    seen = b""
    while process.poll() is None or select.select([keyboard], [], [], 0)[0]:
        if select.select([keyboard], [], [], 0.1)[0]:
            seen += os.read(keyboard, 1000)
        if waiting and seen.count(b"secret in the mail: ") > len(pasted) - len(waiting):
            os.write(keyboard, waiting.pop(0).encode() + b"\n")
    os.close(terminal)
    os.close(keyboard)
    return seen.decode(), out.read_text(), process.wait(timeout=30)


def test_secret_is_never_an_argument(server_workspace: Workspace) -> None:
    """A mailed secret is not taken as an argument: it would be in the list of processes and the shell's history."""
    for command in ("accept", "sign-in"):
        refused = server_workspace.run(command, "rci_x", stdin="")

        assert refused.returncode == 2

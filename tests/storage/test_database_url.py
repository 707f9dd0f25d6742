"""Database URLs: what they mean, and that no part of one that can't be parsed is shown."""

import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rolecall.errors import ConfigError
from rolecall.storage import Storage
from rolecall.storage.database_url import name_of, parse

# Characters that separate the parts of a URL, that stand for others, that drivers quote, and beyond ASCII.
SPECIAL = "@/:#%?&=+[]!$'\"\\ ,;~aZ09éß漢😀\u00a0"
PASSWORDS = st.text(SPECIAL, min_size=1, max_size=24) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24
)


def refusal(url: str, password: str = "") -> str:
    """The message about a URL, which has no exception behind it that could be printed with it."""
    with pytest.raises(ConfigError) as caught:
        parse(url, password)
    assert caught.value.__context__ is None
    return caught.value.message


MALFORMED = refusal("malformed")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgresql://ann@db/r?", ("ann", None, "db", None, "r")),
        ("postgresql://ann:pass@db:5433/rolecall", ("ann", "pass", "db", 5433, "rolecall")),
        ("postgres://ann:pass@db:5433/rolecall", ("ann", "pass", "db", 5433, "rolecall")),
        ("postgres+psycopg2://ann@db/rolecall\n", ("ann", None, "db", None, "rolecall")),
        ("postgresql://a%40x:p%40ss%2Fw%3Ard%23%3F%25@db/r", ("a@x", "p@ss/w:rd#?%", "db", None, "r")),
        ("postgresql://ann:p:ss wörd+&=@db/r", ("ann", "p:ss wörd+&=", "db", None, "r")),
        ("postgresql://ann@[::1]:5432/r", ("ann", None, "::1", 5432, "r")),
        ("postgresql://ann@%2Frun%2Fpostgresql/r", ("ann", None, "/run/postgresql", None, "r")),
        ("postgresql:///r", (None, None, None, None, "r")),
        ("postgresql://ann@db", ("ann", None, "db", None, None)),
    ],
)
def test_postgresql_url_has_the_parts_that_libpq_sees(text: str, url: tuple[object, ...]) -> None:
    """Both schemes mean psycopg; parts are decoded; white space around the URL, as a line break, is none of it."""
    parsed = parse(text)

    assert parsed.drivername == "postgresql+psycopg"
    assert (parsed.username, parsed.password, parsed.host, parsed.port, parsed.database) == url


def test_parameters_are_those_of_libpq() -> None:
    """Parameters of the connection are passed on, a repeated one as several values; an unknown one is refused."""
    parsed = parse("postgresql://ann@/r?host=a:1&host=b:2&sslmode=require&options=-c%20geqo%3Doff")

    assert parsed.query == {"host": ("a:1", "b:2"), "sslmode": "require", "options": "-c geqo=off"}
    for unknown in ("autocommit=1", "hunter2=1"):
        message = refusal(f"postgresql://ann@db/r?{unknown}")
        assert "a parameter that PostgreSQL doesn't know" in message
        assert unknown.partition("=")[0] not in message


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:Zx9@Secret77@127.0.0.1/rc",
        "postgresql://u:p@ss/w:rd@host/db",
        "postgresql://u:pa/ss@host/db",
        "postgresql://u:12/ss@host/db",
        "postgresql://u:12?ss@host/db",
        "postgresql://u:12?sslmode=ss@host/db",
        "postgresql://u:pa#ss@host/db",
        "postgresql://u:pa?ss@host/db",
        "postgresql://u:100%@host/db",
        "postgresql://u:%zz@host/db",
        "postgresql://u:%00@host/db",
        "postgresql://u:%ff@host/db",
        "postgresql://us/er:pass@host/db",
        "postgresql://u:pass@host:port/db",
        "postgresql://u:pass@host:65536/db",
        "postgresql://u:pass@host/d:b",
        "postgresql://u:pass@host/db?sslmode",
        "postgresql://host:5432/db?password=p@ss",
        "postgresql://u:pass@host/db?application_name=%00",
        "postgresql://u:pass@host/db\npostgresql://u:pass@host/db",
        "postgresql://u:\udcff@host/db",
        "postgresql:u:pass@host/db",
        "mysql://u:pass@host/db",
        "sqlite://u:pass@host/db",
        "sqlite://u:p@ss/w:rd@host/db",
        "sqlite:rolecall.db",
        "u:pass@host",
        "",
    ],
)
def test_malformed_url_is_refused_with_one_text(text: str) -> None:
    """One message for all that is wrong says how to write a URL, and where to put a password."""
    assert refusal(text) == MALFORMED
    assert "percent-encode `@` as %40" in MALFORMED
    assert "ROLECALL_DATABASE_PASSWORD_FILE" in MALFORMED


@pytest.mark.parametrize("text", ["sqlite:///rolecall.db", "sqlite:////srv/a:b@c/#1.db", "sqlite:///100%s/x.db"])
def test_path_of_sqlite_may_have_any_character(text: str) -> None:
    """Characters that separate parts of a PostgreSQL URL are parts of a file's name."""
    assert parse(text).database == text.removeprefix("sqlite:///")


@given(user=PASSWORDS, password=PASSWORDS, name=PASSWORDS)
def test_encoded_parts_are_read_as_they_were(user: str, password: str, name: str) -> None:
    """A user, password and name of any characters arrive whole where they are percent-encoded; a control is refused."""
    url = f"postgresql://{quote(user, '')}:{quote(password, '')}@127.0.0.1/{quote(name, '')}"
    if any(ord(character) < 32 or ord(character) == 127 for character in user + password + name):
        assert refusal(url) == MALFORMED
        return
    parsed = parse(url)

    assert (parsed.username, parsed.password, parsed.database) == (user, password, name)
    assert name_of(parsed) == f"{name} at 127.0.0.1"


@given(password=PASSWORDS)
def test_separate_password_needs_no_encoding(password: str) -> None:
    """A password beside the URL is taken as it is; only one with a NUL can't be passed on."""
    url = "postgresql://u@127.0.0.1/db"
    if "\0" in password:
        assert refusal(url, password) == MALFORMED
        return
    assert parse(url, password).password == password
    for both in ("postgresql://u:own@127.0.0.1/db", "postgresql://127.0.0.1/db?user=u&password=own"):
        assert refusal(both, password) == refusal(both, "other")
    assert "has no password" in refusal("sqlite:///rolecall.db", password)


def shown_about(url: str, password: str = "") -> str:
    """All that is shown of a database that can't be used: messages, and the whole traceback of each error."""
    shown = []
    for use in (Storage.check, Storage.create, Storage.upgrade, Storage.is_new):
        try:
            use(Storage(url, password=password))
        except ConfigError as error:
            # Source lines and positions are the same for every password.
            shown.append(error.message + "".join(map(str, traceback.TracebackException.from_exception(error).format())))
    return "\n".join(shown)


PLACES = (
    "postgresql://ann:{raw}@127.0.0.1:1/rolecall",
    "postgres://ann:{raw}@127.0.0.1:1/rolecall?connect_timeout=1",
    "postgresql://ann:{encoded}@127.0.0.1:1/rolecall",
    "postgresql://ann@127.0.0.1:1/rolecall?password={raw}",
    "postgresql://ann@127.0.0.1:1/rolecall?password={encoded}",
    "sqlite://ann:{raw}@127.0.0.1/rolecall",
    "mysql://ann:{raw}@127.0.0.1:1/rolecall",
)


@given(password=PASSWORDS, place=st.sampled_from(PLACES))
@example("Zx9@Secret77", PLACES[0])
@example("p@ss/w:rd", PLACES[0])
@example("12/x@y:z", PLACES[0])
@example("12?user=secret", PLACES[0])
@example("a&user=secret", PLACES[3])
def test_no_piece_of_a_password_is_shown(password: str, place: str) -> None:
    """Texts about a URL are the same for every password: those of another one, or those of no URL at all."""
    url = place.format(raw=password, encoded=quote(password, ""))
    shown = shown_about(url)
    own = {shown_about(place.format(raw=other, encoded=other)) for other in ("hunter", "a&sslmode_=x")}
    pieces = {password[i : i + 3] for i in range(len(password) - 2)}

    assert shown in own | {shown_about("malformed")}
    assert not any(piece in shown for piece in pieces if piece not in "".join(own))

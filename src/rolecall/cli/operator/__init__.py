"""`rolecall operator`: commands that work at the database itself, for those who run the server."""

from rolecall.cli.commands import Commands
from rolecall.cli.operator import audit, db, organizations, policy, tokens
from rolecall.cli.operator.backup import backup

__all__ = ["app"]

app = Commands("Commands for the operator: they use the database directly, without a server or a token.")
app.add_typer(organizations.app, name="organizations")
app.add_typer(tokens.app, name="tokens")
app.add_typer(policy.app, name="policy")
app.add_typer(audit.app, name="audit")
app.add_typer(db.app, name="db")
app.command()(backup)

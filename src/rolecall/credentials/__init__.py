"""Text format of credentials and mailed secrets, and the server's key from which mailed secrets are derived."""

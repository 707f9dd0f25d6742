"""The roles of the shipped policy, the strongest first."""

ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")

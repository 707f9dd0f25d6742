"""Callers behind credentials, and roles of subjects: from a cache that commits invalidate, or the database."""

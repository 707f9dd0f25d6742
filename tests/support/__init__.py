"""Helpers of the tests, shared by several files."""

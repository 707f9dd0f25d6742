"""Formats of what people write in requests: addresses, display names, external ids, networks."""

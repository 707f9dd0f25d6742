"""Transports, which receive calls and pass them to the handler: by grpc's public API, or in its polling thread."""

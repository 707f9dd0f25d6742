"""The use cases: one module for each gRPC service, and the rules that they share."""

"""One thin class for each gRPC service: request in, one call of a use case, response out."""

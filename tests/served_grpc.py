"""Has grpc work in the tests as it does in `rolecall serve`. It is set up when it is first imported."""

from rolecall.cli.output import hurry_grpc

hurry_grpc()

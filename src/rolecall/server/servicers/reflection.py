"""grpc.reflection, v1 and v1alpha, with the comments of the protos: `grpcurl describe` is the manual."""

from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha import reflection, reflection_pb2

from rolecall.server.transport.executors import Executors
from rolecall.v1 import errors_pb2  # noqa: F401 - nothing else imports it, and only what is imported can be described

__all__ = ["add_reflection"]

_METHOD = "ServerReflectionInfo"
_V1 = "grpc.reflection.v1.ServerReflection"
_V1_ALPHA = reflection.SERVICE_NAME


class _DocumentedFile:
    """A file's descriptor that copies itself with the comments, which generated Python code leaves out."""

    def __init__(self, documented: FileDescriptorProto, dependencies: list[Any]) -> None:
        self.name = documented.name
        self.dependencies = dependencies
        self._documented = documented

    def CopyToProto(self, proto: FileDescriptorProto) -> None:
        proto.CopyFrom(self._documented)


class _DocumentedPool:
    """The default pool, but for our own files, which come with their comments."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()
        raw = resources.files("rolecall.v1").joinpath("api.binpb").read_bytes()
        self._documented = {file.name: file for file in FileDescriptorSet.FromString(raw).file}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> Any:
        return self._with_comments(self._pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            file = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool doesn't know methods, which people describe most.
            file = self._pool.FindFileContainingSymbol(symbol.rpartition(".")[0])
        return self._with_comments(file)

    def _with_comments(self, file: Any) -> Any:
        documented = self._documented.get(file.name)
        if documented is None:
            return file
        return _DocumentedFile(documented, [self._with_comments(dependency) for dependency in file.dependencies])


def add_reflection(server: grpc.Server, services: Iterable[str], executors: Executors) -> None:
    """Add both versions of the reflection service, which differ in their names only. They describe `services`."""
    servicer = reflection.ReflectionServicer([*services, _V1_ALPHA], _DocumentedPool())

    def answer(
        requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        yield from servicer.ServerReflectionInfo(requests, context)

    executors.run_dedicated("reflection", answer)
    handler = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (_V1, _V1_ALPHA):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {_METHOD: handler}),))

"""A client of text-embeddings-inference's gRPC interface, from names and numbers as published, none of ours.

https://github.com/huggingface/text-embeddings-inference, proto/tei.proto
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto

PACKAGE: Final = "tei.v1"
# Message → field → number, type, and whether it is repeated.
MESSAGES: Final[dict[str, dict[str, tuple[int, Any, bool]]]] = {
    "InfoRequest": {},
    "InfoResponse": {
        "model_id": (4, Field.TYPE_STRING, False),
        "model_dtype": (6, Field.TYPE_STRING, False),
        "max_input_length": (9, Field.TYPE_UINT32, False),
        "max_client_batch_size": (12, Field.TYPE_UINT32, False),
    },
    "EmbedRequest": {
        "inputs": (1, Field.TYPE_STRING, False),
        "truncate": (2, Field.TYPE_BOOL, False),
        "normalize": (3, Field.TYPE_BOOL, False),
    },
    # Metadata, field 2, is left unknown, as by a client that was made before it.
    "EmbedResponse": {"embeddings": (1, Field.TYPE_FLOAT, True)},
    "EncodeRequest": {
        "inputs": (1, Field.TYPE_STRING, False),
        "add_special_tokens": (2, Field.TYPE_BOOL, False),
    },
}


def _types() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="theirs.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, is_repeated) in fields.items():
            label = Field.LABEL_REPEATED if is_repeated else Field.LABEL_OPTIONAL
            message.field.add(name=field, number=number, type=kind, label=label)
    # A pool of its own: ours has messages of the same names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


TYPES: Final = _types()


def unary(channel: grpc.Channel, method: str, request: str, response: str) -> Any:
    """A method of one message each way: `unary(channel, "Embed/Embed", "EmbedRequest", "EmbedResponse")`."""
    return channel.unary_unary(
        f"/{PACKAGE}.{method}",
        request_serializer=TYPES[request].SerializeToString,
        response_deserializer=TYPES[response].FromString,
    )


def stream(channel: grpc.Channel, method: str, request: str, response: str) -> Any:
    """A method of many messages each way."""
    return channel.stream_stream(
        f"/{PACKAGE}.{method}",
        request_serializer=TYPES[request].SerializeToString,
        response_deserializer=TYPES[response].FromString,
    )

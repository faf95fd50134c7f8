"""Server reflection: which services there are, and the files that define them. Pure.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from mmsup.gateway.rpc.calls import messages, status
from mmsup.gateway.rpc.calls.messages import HEALTH, INFERENCE, REFLECTIONS, Message


def answer(request: Message, reply_class: type[Message]) -> Message:
    """The reply to one ServerReflectionRequest."""
    reply = reply_class(valid_host=request.host)
    reply.original_request.CopyFrom(request)
    kind = request.WhichOneof("choice")
    try:
        if kind == "list_services":
            for name in sorted((INFERENCE, HEALTH, *REFLECTIONS)):
                reply.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            files = messages.serialized_files(request.file_by_filename)
            reply.file_descriptor_response.file_descriptor_proto.extend(files)
        elif kind == "file_containing_symbol":
            name = messages.file_names_of(request.file_containing_symbol)[0]
            reply.file_descriptor_response.file_descriptor_proto.extend(messages.serialized_files(name))
        else:  # extensions, of which there are none
            raise KeyError(kind)
    except KeyError:
        reply.error_response.error_code = status.NOT_FOUND
        reply.error_response.error_message = "not found"
    return reply

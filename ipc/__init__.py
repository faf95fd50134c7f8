"""The contract between processes: messages, transport, shared memory, errors."""

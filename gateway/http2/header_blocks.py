"""Header blocks of one connection: decoded by hpack, or known by their bytes; those that we send are literals.

A block says the same headers each time, as long as the dynamic table has not changed in between: clients of gRPC send
the same few dozen bytes for each call of a method. Decoding takes 30 us, looking a block up takes 0.05 us.

We never index what we send (RFC 7541, 6.2.2), so that there is no state and constant headers are constant bytes.
"""

from __future__ import annotations

from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from mmsup.gateway.http2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault
from mmsup.ipc.rpc.header_literals import Headers

LIST_LIMIT_BYTES: Final = 1 << 14
"""Of a decoded list of headers, as RFC 9113, 6.5.2 counts them; announced in our settings."""
BLOCK_LIMIT_BYTES: Final = 1 << 15
"""Of a block over all its frames."""
KNOWN_LIMIT: Final = 64
KNOWN_BLOCK_LIMIT_BYTES: Final = 1024


class HeaderBlocks:
    def __init__(self) -> None:
        self._decoder = Decoder(LIST_LIMIT_BYTES)
        self._known: dict[bytes, Headers] = {}

    def decode(self, block: bytes) -> Headers:
        """The headers in order; nobody may change the list. ConnectionFault if the table is out of step for ever."""
        known = self._known.get(block)
        if known is not None:
            return known
        if len(block) > BLOCK_LIMIT_BYTES:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a header block is too large")
        before = self._table_state()
        try:
            decoded = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except (HPACKError, ValueError, IndexError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, "a header block cannot be decoded") from error
        after = self._table_state()
        if after[:2] != before[:2] or after[2] is not before[2]:
            self._known.clear()
        elif len(block) <= KNOWN_BLOCK_LIMIT_BYTES:
            if len(self._known) >= KNOWN_LIMIT:
                self._known.clear()
            self._known[block] = decoded
        return decoded

    def _table_state(self) -> tuple[int, int, object]:
        """Another one after each change: entries are added at the front, each a new object, which is kept here so that
        no later one has its identity."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), entries[0] if entries else None

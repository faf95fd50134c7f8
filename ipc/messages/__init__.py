"""Every message between two of our processes, one file per channel.

`WIRE_VERSION` (handshake.py) covers them all. A class name is the name of its message on the wire.
"""

"""`mmsup chaos`: injects faults into a server under load, records what its clients see, and checks the record."""

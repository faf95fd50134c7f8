"""The keeper process: parent of all other processes, whose descriptors it holds. Standard library only."""

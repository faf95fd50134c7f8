"""The keeper process: parent of everything; holds processes and descriptors."""

"""What a GPU does to processes that share it: the facts that the worker and the supervisor are built on."""

"""Several models in one worker process: those of a co-location group."""

"""Models of Triton's Python backend: the module that they import, and the engine that calls their class."""

"""mmsup: many models on one machine, each in a process of its own."""

__version__ = "0.1.0"

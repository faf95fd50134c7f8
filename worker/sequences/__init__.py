"""Sequences: requests that one worker runs in order, with slots, control inputs and state."""

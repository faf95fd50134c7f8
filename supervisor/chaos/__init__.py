"""Chaos: faults on purpose, clients beside them, a history, and a judgement of it."""

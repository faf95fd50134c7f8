"""Models, revisions in force, loads, the reconcile loop, rolling replacement."""

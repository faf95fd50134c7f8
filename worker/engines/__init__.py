"""What runs a model: one file per kind of artefact, one contract."""

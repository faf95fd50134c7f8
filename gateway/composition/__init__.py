"""Inferences that other inferences ask for: calls between models, and the steps of ensembles."""

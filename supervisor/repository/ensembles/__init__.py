"""Ensembles in a repository: their steps, and whether these fit each other."""

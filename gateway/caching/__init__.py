"""The response cache: results of models that ask for it, by the content of their requests."""

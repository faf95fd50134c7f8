"""Which faults there are, when they are injected and into what; the model that fails on request. Pure."""

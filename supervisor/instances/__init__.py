"""One worker instance: state machine, policies, probes, actions."""

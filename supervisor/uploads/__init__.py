"""Models whose files clients have sent: a repository in the state directory."""

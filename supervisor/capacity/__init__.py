"""Memory as a budget: what workers need, what they may use, whether one more fits. No process is touched here."""

"""From the history of a run to findings, figures, tables and plots."""

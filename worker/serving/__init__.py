"""The loop: receive, run, answer, keep results that wait for memory."""

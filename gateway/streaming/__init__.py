"""Requests that are answered many times: their responses in order, and HTTP's generate and generate_stream."""

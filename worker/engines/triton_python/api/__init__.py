"""What `triton_python_backend_utils` has: tensors, requests, responses, errors, configurations, logging."""

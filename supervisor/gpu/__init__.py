"""GPUs: NVML helper, inventory, selection, health, memory release."""

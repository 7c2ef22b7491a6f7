"""What lies on a medium: bundles, runs, adapters, and how tensors and records are written."""

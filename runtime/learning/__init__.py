"""What happens between the first image and the adapter, in Python (numpy; workers only)."""

"""What comes out: plain models for any inference runtime."""

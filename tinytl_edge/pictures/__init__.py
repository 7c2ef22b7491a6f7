"""What a person looks at: memory drawn, and as text."""

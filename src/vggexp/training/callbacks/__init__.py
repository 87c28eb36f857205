"""What a run does besides learning."""

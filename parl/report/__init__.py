"""What a run says at its end."""

"""From encoder output to words, whole or chunk by chunk."""

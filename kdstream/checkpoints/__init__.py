"""Checkpoint files, their averages, and what a trained model is."""

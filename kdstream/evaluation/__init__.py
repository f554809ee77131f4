"""Scores, latencies, records and comparisons of decoded speech."""

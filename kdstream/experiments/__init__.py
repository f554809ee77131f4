"""Many trainings and decodings, run as one experiment."""

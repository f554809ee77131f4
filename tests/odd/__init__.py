"""A seeded generator of odd input, and the judge of what the commands make of it; docs/robustness.md explains."""

"""From a trained model to the files that a runtime without torch loads, and the proof that it says the same."""

"""Encoders, the transducer around them and its loss."""

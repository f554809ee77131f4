"""Cuts to batches: manifests, features, tokens, augmentation, loaders."""

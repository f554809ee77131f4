"""Speech on disk to manifests, features and tokens; and the embedded corpus."""

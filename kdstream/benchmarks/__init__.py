"""What a training step and a streaming step cost."""

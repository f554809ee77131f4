"""Knowledge distillation: what training adds and inference never sees."""

"""Training: from a base model and rows to a trained adapter, with the loops of TRL and transformers."""

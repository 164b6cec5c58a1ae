"""From model and rows to a trained adapter, by TRL's trainers."""

"""From base and adapter to one full model, and the proof that it is the same."""

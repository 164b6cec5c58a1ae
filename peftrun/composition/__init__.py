"""From what was typed to a checked RunSpec: Hydra's composition, the adapter's own defaults, every refused override explained. Light."""

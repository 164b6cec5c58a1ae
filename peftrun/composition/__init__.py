"""From overrides to a checked RunSpec: Hydra's composition, the adapter's defaults, explanations of refused overrides. Light."""

"""Adapters on a base: attach, load, save, prove. The only user of peft besides peftrun.adapters.merge."""

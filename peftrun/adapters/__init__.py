"""Adapters on a base model: attach, load, save, verify, route, combine. The only package that imports peft."""

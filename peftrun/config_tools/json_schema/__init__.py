"""JSON Schemas of the YAML files, for editors: generated from the dataclasses, their comments and the libraries' own help. Heavy: it asks the libraries."""

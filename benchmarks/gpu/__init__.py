"""Checks and measures peftrun on a machine with one GPU: `make gpu`; README.md beside this file."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "PEFTRUN_GPU_BENCHMARK"  # in the environment: what `context` reads

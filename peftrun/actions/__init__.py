"""What a run does, one file an action: run(spec, out_dir) -> RunResult."""

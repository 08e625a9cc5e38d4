"""Where a training step's time goes: `python -m profiling.trace`, `profiling.roofline`, `profiling.flame`; LOG.md: experiments, newest first."""

"""A training run. Read run (the loop), state, setup, resume, report, step, optimizer_step, then what these use."""

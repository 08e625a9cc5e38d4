"""A training run. Read run (the loop), state, resume, report, step, optimizer_step, then what these use."""

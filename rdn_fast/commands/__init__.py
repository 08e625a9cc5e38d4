"""Commands that compose the other rooms. Read doctor, demo, tune, tune_modes, tune_loss_scale."""

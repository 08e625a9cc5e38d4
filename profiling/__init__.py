"""Where time goes: step, trace, roofline, flame, kernels. What scales and tiles cost: loss_scale, tiles. See LOG.md."""

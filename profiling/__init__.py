"""Where time goes: step, trace, roofline, flame, kernels. What auto takes: choices. Also loss_scale, tiles, LOG.md."""

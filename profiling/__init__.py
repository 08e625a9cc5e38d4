"""Time: step, trace, roofline, flame, kernels. What auto takes: choices. Quality: learning, loss_scale, tiles."""

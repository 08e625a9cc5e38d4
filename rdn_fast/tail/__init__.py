"""The last convolution in mixed precision. Read output_conv, output_kernels, output_trial."""

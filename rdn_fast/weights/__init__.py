"""Weights of any RDN. Read load and keras (files), formats and equivalent (names), convert (the model), onnx_export."""

"""Weights of any RDN, and the shipped ones. Read load (files), formats (names), convert (the model), onnx_export."""

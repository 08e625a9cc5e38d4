"""Weights of any RDN. Read load, keras and torch7 (files), formats and equivalent (names), convert, onnx_export."""

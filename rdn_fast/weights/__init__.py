"""Weights of any RDN. Read shipped, load, pickled, keras, torch7, other_files; formats, equivalent; convert; onnx_*."""

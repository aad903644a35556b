"""A bundle in Triton Inference Server: the model repository that is written, and what runs there."""

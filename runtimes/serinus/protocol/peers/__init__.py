"""Bodies that peers define beside the protocol: examples of TensorFlow Serving, flat JSON of Triton's generate extension."""

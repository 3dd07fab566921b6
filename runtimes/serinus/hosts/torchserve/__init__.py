"""TorchServe's handlers and archives as models of this library."""

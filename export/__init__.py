"""From a trained model to one ONNX file, and a reference consumer of it; not installed with the library."""

"""scdfm predicts how populations of cells answer perturbations nobody has measured."""

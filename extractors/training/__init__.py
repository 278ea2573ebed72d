"""Training: from the cells that a lake knows to the folder of a model."""

"""How rows of images or targets are kept: each store is a frozen pytree, whose numbers are what a method is charged for."""

"""How rows of images or targets are kept: each store is a frozen pytree, whose numbers count against a method's budget."""

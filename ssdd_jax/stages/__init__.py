"""A run, from a config to results: dataset, teacher, distillation, evaluation."""

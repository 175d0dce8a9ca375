"""From a config to results: settings, objects, loops, stages."""

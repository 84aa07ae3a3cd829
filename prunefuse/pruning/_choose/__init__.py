"""Which channels go: scores, groups and ranking, targets, and fitting the choice to what a model's code can express."""

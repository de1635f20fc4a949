"""The study: fine-tune, repair with every method, evaluate and score, over a grid of models, tasks, regimes and seeds."""
